"""The sum of row losses and its gradient by one call of a backend; the losses themselves come with
it, as constants."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.engine import ops
from ms_kernels.engine.autograd import differentiable_once
from ms_kernels.engine.refusals import below_autograd, refuse_second_derivative
from ms_kernels.engine.saved import constants_of
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import total_of


class Summed(NamedTuple):
    total: Tensor  # () in the compute dtype, the sum of rows
    rows: Tensor  # (N,) losses
    kept: Tensor  # (N,) pairs of either kind


def summed_loss(pairs: Pairs, spec: PairSpec, backend: str) -> Summed:
    """Differentiable in the embeddings of both sides."""
    x, r = differentiable_once(pairs)
    if not torch.is_grad_enabled():  # which a function of autograd does not see
        x, r = x.detach(), None if r is None else r.detach()
    given = pairs, spec.pack(), backend
    return Summed(*_SummedLoss.apply(x, r, given))  # type: ignore[no-untyped-call]


class _SummedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, r: Tensor | None, given: tuple[Any, ...]
    ) -> tuple[Tensor, ...]:
        pairs, packed, backend = given
        how = packed, backend, None
        need_dx, need_dr, _ = ctx.needs_input_grad
        with below_autograd():
            rows, kept, dx, dr = ops.loss_and_gradient(*pairs, need_dx, need_dr, *how)
            total = total_of(rows)
        constants_of(ctx, rows, kept)
        ctx.dtype = x.dtype
        ctx.save_for_backward(dx if need_dx else None, dr if need_dr else None)
        return total, rows, kept

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("ms_kernels")
        if dloss is None:
            return None, None, None
        dx, dr = (None if d is None else (d * dloss).to(ctx.dtype) for d in ctx.saved_tensors)
        return dx, dr, None
