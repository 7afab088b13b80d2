"""Which KV blocks hold what: allocation, sharing, eviction, swapping. Numbers only, no tensors."""
