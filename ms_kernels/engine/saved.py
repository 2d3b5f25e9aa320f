"""What functions of autograd keep for their backward pass, and under which precision."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from ms_kernels.checks import savable
from ms_kernels.settings import float32_products


def constants_of(ctx: Any, *outputs: Tensor) -> None:
    """Outputs without a derivative, for whose gradients no zeros are made."""
    ctx.mark_non_differentiable(*outputs)
    ctx.set_materialize_grads(False)


def keep(ctx: Any, *tensors: Tensor | None) -> None:
    """For backward."""
    ctx.save_for_backward(*map(savable, tensors))


def precision_now() -> str | None:
    """How torch takes float32 products now; None in a graph, which does not see it."""
    return None if torch.compiler.is_compiling() else float32_products()


def products_of(precision: str | None) -> contextlib.AbstractContextManager[None]:
    """As in the forward pass: other products would mine other pairs than the statistics are of."""
    if precision is None or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return _set_precision(precision)


@contextlib.contextmanager
def _set_precision(precision: str) -> Iterator[None]:
    before = float32_products()
    if precision == before:
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
