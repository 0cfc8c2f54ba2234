"""Arithmetic beneath the kernels: elementary functions, streams, exponents, BLAS, compiled code."""
