"""With several instances: each of torchrun's processes runs its rank as a child, and outlives it."""
