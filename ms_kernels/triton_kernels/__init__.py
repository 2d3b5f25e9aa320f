"""Triton kernels of the triton backend; `backends/triton.py` launches them."""
