"""The loss of the rows of all processes, and the gradient of those that are here.

Statistics are a few numbers a row: once everybody has everybody's, each process knows the loss of
the whole batch and, since a gradient needs nothing but both rows and their statistics, that of its
own rows. So a backward pass tells nobody anything.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.checks import Pairs
from ms_kernels.engine import ops
from ms_kernels.engine.autograd import constants_of, keep, precision_now, products_of
from ms_kernels.engine.exchange import Exchange
from ms_kernels.engine.reduction import divisor_of, reduce_rows
from ms_kernels.engine.refusals import below_autograd, refuse_second_derivative
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet


class GlobalCall(NamedTuple):
    """anchors: the rows that are here, against candidates: the rows of all, or of a memory.

    mutual: the candidates are the rows of all, whose losses pull at those that are here.
    """

    anchors: Pairs
    mutual: bool
    spec: PairSpec
    reduction: str
    backend: str
    exchange: Exchange


class GlobalLoss(torch.autograd.Function):
    """Of the rows of all processes: sum, mean or mean_valid; or of each that is here."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, weight: Tensor | None, call: GlobalCall
    ) -> tuple[Tensor, ...]:
        with below_autograd():
            stats, error = _statistics(call)
            call.exchange.confirm(error)
            everybody = RowStatistics(*_gathered(call.exchange, stats))
            rows = _row_losses(call, everybody)
            ones = torch.ones_like(rows) if weight is None else call.exchange.gather(weight)
            kept = everybody.pos_kept + everybody.neg_kept
            here = call.exchange.own
            if call.reduction == "none":
                loss = reduce_rows(rows[here], kept[here], "none", ones[here])
                worth = ones
            else:
                loss = reduce_rows(rows, kept, call.reduction, ones)
                worth = ones / divisor_of(ones, kept, call.reduction)
            ctx.dtype, ctx.here = embeddings.dtype, here
            later = call.reduction == "none"
            dx = None
            # A collective of some rules: all go in if one has to.
            if True in call.exchange.gradients and not later:
                dx = _gradient(call, everybody, worth, here)
        constants_of(ctx, *stats)
        if later:  # candidates may have changed until then, which autograd is to notice
            ctx.call = call._replace(anchors=None)  # type: ignore[arg-type]
            ctx.precision = precision_now()
            keep(ctx, dx, worth, *everybody, *call.anchors)
        else:
            ctx.save_for_backward(dx)
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("DistributedLoss")
        if dloss is None:
            return None, None, None
        dx, *later = ctx.saved_tensors
        if later:
            worth, stats = later[0], RowStatistics(*later[1:8])
            call = ctx.call._replace(anchors=Pairs(*later[8:]))
            with products_of(ctx.precision), below_autograd():
                worth = torch.where(worth == 0, 0, worth * call.exchange.gather(dloss))
                dx = _gradient(call, stats, worth, ctx.here)
        elif dx is not None:
            dx = dx * dloss
        return None if dx is None else dx.to(ctx.dtype), None, None


class RowsHere(torch.autograd.Function):
    """Of losses that every process has of all rows those of its own rows; of their worth each hears
    from the others."""

    @staticmethod
    def forward(ctx: Any, losses: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return losses[exchange.own].clone()

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        return ctx.exchange.gather(dloss), None


def _statistics(call: GlobalCall) -> tuple[tuple[Tensor, ...], BaseException | None]:
    """Those of the rows here; what goes wrong is for all to hear."""
    try:
        return tuple(ops.row_statistics(*call.anchors, call.spec.pack(), call.backend)), None
    except Exception as error:
        return (), error


def _gathered(exchange: Exchange, stats: tuple[Tensor, ...]) -> list[Tensor]:
    """Of all rows: two messages, of numbers and of counts."""
    counts = exchange.gather(torch.stack(stats[4:6], 1))
    numbers = exchange.gather(torch.stack([*stats[:4], stats[6]], 1))
    columns = numbers.T.contiguous()
    return [*columns[:4], *counts.T.contiguous(), columns[4]]


def _row_losses(call: GlobalCall, stats: RowStatistics) -> Tensor:
    x, r = call.anchors.embeddings, call.anchors.ref_emb
    loss: Tensor = ops.row_loss_of(list(stats), x, r, call.spec.pack(), call.backend)
    return loss


def _gradient(call: GlobalCall, stats: RowStatistics, worth: Tensor, here: slice) -> Tensor:
    """(n, D) in the compute dtype, of the sum over all rows of their losses times what they are
    worth."""
    options = call.spec.pack(), call.backend
    own = [*(s[here].contiguous() for s in stats), worth[here].contiguous()]
    x = call.anchors.embeddings
    if not isinstance(call.spec.weighting, Triplet):
        everybody = [*stats, worth] if call.mutual else []
        dx: Tensor = ops.embedding_gradient(*call.anchors, own, everybody, *options)
        return dx
    # Pairs are compared with pairs: the pull of others' rows is known where all their pairs are.
    _, _, dx, dr = ops.loss_and_gradient(*call.anchors, True, call.mutual, *options, own[-1])
    if call.mutual:
        dx = dx + call.exchange.gather_sum(dr)
    return dx if dx.numel() else torch.zeros_like(x, dtype=compute_dtype(x))
