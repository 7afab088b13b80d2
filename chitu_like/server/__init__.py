"""HTTP, text and metrics: a process of its own beside rank 0 that never sees a tensor."""
