"""Kernels in Triton, one file an op; imported only where there is a CUDA device."""
