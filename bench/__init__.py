"""Benchmarks of the losses against plain PyTorch and pytorch-metric-learning."""
