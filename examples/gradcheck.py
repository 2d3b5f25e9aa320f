"""Gradcheck of every backend, for a CI: python examples/gradcheck.py"""

import torch

import ms_kernels

torch.manual_seed(0)
x = torch.randn(24, 8, dtype=torch.float64, requires_grad=True)
y = torch.arange(24) // 4
for name, state in ms_kernels.backends().items():
    if state.available:
        torch.autograd.gradcheck(
            lambda x, name=name: ms_kernels.multi_similarity_loss(x, y, backend=name), x
        )
        print(f"{name}: gradient equals finite differences")
    else:
        print(f"{name}: skipped, {state.note}")
