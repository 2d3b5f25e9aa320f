"""Unit rows, times a factor that may learn, with a derivative of few passes over them.

Autograd's way through `unit_rows` is some twenty ops and back: a third of the time of a loss of two
times 512 rows.
"""

import math
from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.backends.plain.sides import computed
from ms_kernels.engine.refusals import is_batch, is_forward_mode, refuse_second_derivative
from ms_kernels.reference import NORM_FLOOR, is_floored, row_scale
from ms_kernels.rules.triplet import is_traced


def scaled_rows(x: Tensor, factor: Tensor | None, normalize: bool) -> Tensor:
    """(N, D) in the compute dtype: rows, of length 1 if asked, times factor, of shape ()."""
    x = x.to(compute_dtype(x))
    if normalize and not _is_transformed():
        unit: Tensor = _UnitRows.apply(x, factor)  # type: ignore[no-untyped-call]
        return unit
    rows = computed(x, normalize)
    return rows if factor is None else rows * factor


def _is_transformed() -> bool:
    """Whether somebody follows what is computed who knows no function of autograd."""
    return is_traced() or is_forward_mode()


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | None) -> Tensor:
        unit: Tensor
        norm = torch.linalg.vector_norm(x, dim=1, keepdim=True)
        # Of a GPU nobody asks: it would be waited for.
        if x.device.type == "cpu" and _are_usual(norm):
            unit, inverse = x / norm, norm.reciprocal()
        else:
            scale = row_scale(x)
            scaled = x / scale
            norm = torch.linalg.vector_norm(scaled, dim=1, keepdim=True)
            floored = is_floored(norm)
            unit = scaled / torch.where(floored, NORM_FLOOR, norm)
            # A row without a direction has no derivative, but passes on what is not finite.
            inverse = torch.where(floored, 0, 1 / norm) / scale
        ctx.save_for_backward(unit, inverse, factor)
        return unit if factor is None else unit * factor

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, Tensor | None]:
        refuse_second_derivative("pair_loss")
        unit, inverse, factor = ctx.saved_tensors
        products = incoming * unit
        along = products.sum(1, keepdim=True)
        dx = None
        dfactor = along.sum() if ctx.needs_input_grad[1] else None
        if ctx.needs_input_grad[0]:
            # What is allocated anew costs as much as a pass over it.
            into = None if is_batch(incoming) else products
            dx = torch.addcmul(incoming, along, unit, value=-1, out=into)
            dx *= inverse if factor is None else inverse * factor
        return dx, dfactor


def _are_usual(norm: Tensor) -> bool:
    """Whether no square overflows and every row has a direction."""
    if norm.numel() == 0:
        return True
    least, most = norm.aminmax()
    return least.item() >= NORM_FLOOR and math.isfinite(most.item())
