"""Attention over the paged KV cache: one contract, one file a backend."""
