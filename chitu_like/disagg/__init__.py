"""Prefill here, decode there: how a request crosses, and who holds its blocks meanwhile."""
