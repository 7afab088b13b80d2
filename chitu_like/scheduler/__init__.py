"""Who runs next: continuous batching over slots and KV blocks, ordered by a policy."""
