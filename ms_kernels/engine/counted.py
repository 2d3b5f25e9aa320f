"""The loss where anchors count by weights, or whose statistics are wanted."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.engine import ops
from ms_kernels.engine.autograd import differentiable_once, in_public_dtype
from ms_kernels.engine.reduction import divisor_of, weighted
from ms_kernels.engine.refusals import (
    below_autograd,
    refuse_second_derivative,
    refuse_transforms,
)
from ms_kernels.engine.row_loss import row_losses_of
from ms_kernels.engine.saved import constants_of
from ms_kernels.reference import RowStatistics, count_valid
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
            loss = weighted(loss, weight)
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
            # Few ops: on a GPU each is a launch.
            shares, whole = weight, None
            if weight is not None and reduction != "sum":
                # Weights may be of any size; which anchors are valid is known later.
                whole = divisor_of(weight, weight, "mean")
                shares = weight / whole
            how = spec.pack(), backend, shares, option_values
            rows, *found = ops.counted_loss(*pairs, *needs, *how)
            stats, gradients = found[:7], found[7:]
            kept = stats[4] + stats[5] if reduction == "mean_valid" else None
            divisor = of_weights = _divisor_of(weight, kept, whole, len(rows), reduction)
            if whole is not None and of_weights is not None:  # by which shares are divided already
                divisor = None if kept is None else of_weights / whole
            total = total_of(rows if shares is None else weighted(rows, shares))
            loss = total if divisor is None else total / divisor
        dw = None
        if need_dw and weight is not None:
            dw = _of_weights(rows, kept, weight, loss, of_weights)
        saved = [d if needed else None for d, needed in zip(gradients, needs, strict=True)]
        ctx.dtype, ctx.rows = embeddings.dtype, None
        if isinstance(divisor, int):
            ctx.rows, divisor = divisor, None
        constants_of(ctx, *stats)
        ctx.save_for_backward(*saved, dw, divisor)
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("ms_kernels")
        if dloss is None:
            return None, None, None, None, None
        *gradients, dw, divisor = ctx.saved_tensors
        if divisor is None:
            divisor = ctx.rows
        each = dloss if divisor is None else dloss / divisor
        dx, dr, doptions = (None if d is None else d * each for d in gradients)
        dx, dr = (None if d is None else d.to(ctx.dtype) for d in (dx, dr))
        return dx, dr, None if dw is None else dw * dloss, doptions, None


def _divisor_of(
    weight: Tensor | None, kept: Tensor | None, whole: Tensor | None, count: int, reduction: str
) -> Tensor | int | None:
    """What the sum of the losses is divided by; None of the sum itself. kept: of "mean_valid"
    alone. whole: the sum of the weights, where it divides."""
    if kept is not None:
        return count_valid(kept) if weight is None else divisor_of(weight, kept, reduction)
    return max(count, 1) if whole is None and reduction == "mean" else whole


def _of_weights(
    rows: Tensor,
    kept: Tensor | None,
    weight: Tensor,
    loss: Tensor,
    divisor: Tensor | int | None,
) -> Tensor:
    """dloss / dweight: each counts its loss, and in a mean draws the others' down."""
    own = torch.where((weight == 0) & ~rows.isfinite(), 0, rows)
    if divisor is None:
        return own
    counts = torch.ones_like(weight) if kept is None else (kept > 0).to(weight.dtype)
    # Where the weights add up to 0 the divisor is a constant.
    drawn = torch.where((counts * weight).sum() == 0, 0, loss)
    return (own - counts * drawn) / divisor
