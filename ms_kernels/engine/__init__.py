"""Ops of PyTorch and their derivatives: what lies between the public functions and a backend."""
