"""How weights are stored and multiplied: one QuantMethod a scheme."""
