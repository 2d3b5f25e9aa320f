"""The loss where anchors count by weights, or whose statistics are wanted."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.engine import ops
from ms_kernels.engine.autograd import differentiable_once, in_public_dtype
from ms_kernels.engine.reduction import divisor_of, reduce_rows
from ms_kernels.engine.refusals import (
    below_autograd,
    refuse_second_derivative,
    refuse_transforms,
)
from ms_kernels.engine.row_loss import row_losses_of
from ms_kernels.engine.saved import constants_of
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import total_of


def fused_counted_loss(
    pairs: Pairs,
    spec: PairSpec,
    reduction: str,
    backend: str,
    weight: Tensor | None,
    option_values: Tensor | None = None,
) -> tuple[Tensor, RowStatistics]:
    """In the public dtype. weight: (N,) in the compute dtype, None for ones. option_values: see
    `ops`."""
    x, r = differentiable_once(pairs)
    if not torch.compiler.is_compiling():
        refuse_transforms(sample_weight=weight, option_values=option_values)
    if reduction == "none":
        loss, *stats = row_losses_of(x, r, pairs, spec, backend, option_values)
        if weight is not None:
            loss = reduce_rows(loss, stats[4], "none", weight)
    else:
        call = Call(pairs, reduction, spec, backend)
        loss, *stats = CountedLoss.apply(x, r, weight, option_values, call)  # type: ignore[no-untyped-call]
    return in_public_dtype(loss, pairs.embeddings, reduction), RowStatistics(*stats)


class Call(NamedTuple):
    """One argument to autograd, which looks at each."""

    pairs: Pairs
    reduction: str
    spec: PairSpec
    backend: str


class CountedLoss(torch.autograd.Function):
    """Sum, mean or mean_valid and the statistics, and the gradient in the forward pass: candidates
    are not kept for a backward pass, and may change before it."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        weight: Tensor | None,
        option_values: Tensor | None,
        call: Call,
    ) -> tuple[Tensor, ...]:
        pairs, reduction, spec, backend = call
        need_dx, need_dr, need_dw, need_options, _ = ctx.needs_input_grad
        needs = need_dx, need_dr, need_options
        with below_autograd():
            # Of the sum: what it is divided by is known at the end.
            how = spec.pack(), backend, weight, option_values
            rows, *found = ops.counted_loss(*pairs, *needs, *how)
            stats, gradients = found[:7], found[7:]
            kept = stats[4] + stats[5]
            ones = torch.ones_like(rows) if weight is None else weight
            divisor = None if reduction == "sum" else divisor_of(ones, kept, reduction)
            total = total_of(rows)
            if weight is not None:
                total = reduce_rows(rows, kept, "sum", weight)
            loss = total if divisor is None else total / divisor
        dw = _of_weights(rows, kept, ones, loss, divisor, reduction) if need_dw else None
        saved = [d if needed else None for d, needed in zip(gradients, needs, strict=True)]
        ctx.dtype = embeddings.dtype
        constants_of(ctx, *stats)
        ctx.save_for_backward(*saved, dw, divisor)
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("ms_kernels")
        if dloss is None:
            return None, None, None, None, None
        *gradients, dw, divisor = ctx.saved_tensors
        each = dloss if divisor is None else dloss / divisor
        dx, dr, doptions = (None if d is None else d * each for d in gradients)
        dx, dr = (None if d is None else d.to(ctx.dtype) for d in (dx, dr))
        return dx, dr, None if dw is None else dw * dloss, doptions, None


def _of_weights(
    rows: Tensor,
    kept: Tensor,
    weight: Tensor,
    loss: Tensor,
    divisor: Tensor | None,
    reduction: str,
) -> Tensor:
    """dloss / dweight: each counts its loss, and in a mean draws the others' down."""
    own = torch.where((weight == 0) & ~rows.isfinite(), 0, rows)
    if divisor is None:
        return own
    counts = torch.ones_like(weight) if reduction == "mean" else (kept > 0).to(weight.dtype)
    # Where the weights add up to 0 the divisor is a constant.
    drawn = torch.where((counts * weight).sum() == 0, 0, loss)
    return (own - counts * drawn) / divisor
