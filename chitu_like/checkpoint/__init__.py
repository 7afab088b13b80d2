"""Weights from disk into parameters: read lazily, nothing missing, nothing left over."""
