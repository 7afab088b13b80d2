"""Benchmarks: what the scripts of benchmarks/ and `chitu-like bench` measure with."""
