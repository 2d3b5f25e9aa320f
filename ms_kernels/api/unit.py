"""Unit rows, times a factor that may learn, with a derivative of few passes over them.

Autograd's way through `unit_rows` is some twenty ops and back: a third of the time of a loss of two
times 512 rows.
"""

from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.backends.plain.sides import computed, full_precision
from ms_kernels.engine.refusals import is_forward_mode, refuse_second_derivative
from ms_kernels.reference import NORM_FLOOR, is_floored, row_scale


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
    inside = torch._C._functorch.peek_interpreter_stack() is not None
    return inside or torch.compiler.is_compiling() or is_forward_mode()


class _UnitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor | None) -> Tensor:
        scale, scaled = torch.ones((), dtype=x.dtype, device=x.device), x
        norm = x.norm(dim=1, keepdim=True)
        # Of a GPU nobody asks whether a square overflows: it would be waited for.
        if x.device.type != "cpu" or not norm.isfinite().all():
            scale = row_scale(x)
            scaled = x / scale
            norm = scaled.norm(dim=1, keepdim=True)
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
        with full_precision(unit):
            along = torch.einsum("nd,nd->n", incoming, unit)[:, None]
        dx = dfactor = None
        if ctx.needs_input_grad[0]:
            dx = torch.addcmul(incoming, along, unit, value=-1)
            dx *= inverse if factor is None else inverse * factor
        if ctx.needs_input_grad[1]:
            dfactor = along.sum()
        return dx, dfactor
