"""The loss of the rows of all processes, and the gradient of those that are here.

Statistics are a few numbers a row: once everybody has everybody's, each process knows the loss of
the whole batch and, since a gradient needs nothing but both rows and their statistics, that of its
own rows. So a backward pass tells nobody anything.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.checks import Pairs
from ms_kernels.engine import ops
from ms_kernels.engine.exchange import Exchange, from_message, message_of
from ms_kernels.engine.reduction import divisor_of, reduce_rows
from ms_kernels.engine.refusals import below_autograd, refuse_second_derivative
from ms_kernels.engine.saved import constants_of, keep, precision_now, products_of
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet


class Reduced(NamedTuple):
    """dx: in the compute dtype, None where nobody wants one. stats: of the rows that are here."""

    loss: Tensor
    stats: RowStatistics
    dx: Tensor | None


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

    def reduced(self, weight: Tensor | None) -> Reduced:
        """Of any reduction but "none"."""
        stats, everybody, rows, ones = _rows_of_all(self, weight)
        kept = everybody.pos_kept + everybody.neg_kept
        loss = reduce_rows(rows, kept, self.reduction, ones)
        dx = None
        # A collective of some rules: all go in if one has to.
        if True in self.exchange.gradients:
            worth = ones / divisor_of(ones, kept, self.reduction)
            dx = _gradient(self, everybody, worth, self.exchange.own)
        return Reduced(loss, stats, dx)


# Of the rows that are here: from what losses counted, their statistics, and the rows of the call.
LaterGradient = Callable[[Tensor, RowStatistics, list[Tensor]], Tensor]


def gradient_of(ctx: Any, dloss: Tensor | None, later: LaterGradient) -> Tensor | None:
    """What a backward pass gives the embeddings: the gradient of forward scaled, or, where losses
    of rows had to wait for what they are worth, `later`."""
    refuse_second_derivative("DistributedLoss")
    if dloss is None:
        return None
    dx, *kept = ctx.saved_tensors
    if kept:
        with products_of(ctx.precision), below_autograd():
            dx = later(kept[0], RowStatistics(*kept[1:8]), kept[8:])
    elif dx is not None:
        dx = dx * dloss
    return None if dx is None else dx.to(ctx.dtype)


def worth_of(counted: Tensor, dloss: Tensor) -> Tensor:
    """What does not count weighs nothing, whatever comes in."""
    return torch.where(counted == 0, 0, counted * dloss)


class GlobalLoss(torch.autograd.Function):
    """Of the rows of all processes: sum, mean or mean_valid; or of each that is here."""

    @staticmethod
    def forward(
        ctx: Any, embeddings: Tensor, weight: Tensor | None, call: GlobalCall
    ) -> tuple[Tensor, ...]:
        ctx.dtype, ctx.here = embeddings.dtype, call.exchange.own
        with below_autograd():
            if call.reduction != "none":
                loss, stats, dx = call.reduced(weight)
                ctx.save_for_backward(dx)
            else:  # candidates may have changed until backward, which autograd is to notice
                stats, everybody, rows, ones = _rows_of_all(call, weight)
                kept = stats.pos_kept + stats.neg_kept
                loss = reduce_rows(rows[ctx.here], kept, "none", ones[ctx.here])
                ctx.call = call._replace(anchors=None)  # type: ignore[arg-type]
                ctx.precision = precision_now()
                keep(ctx, None, ones, *everybody, *call.anchors)
        constants_of(ctx, *stats)
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        def later(worth: Tensor, stats: RowStatistics, kept: list[Tensor]) -> Tensor:
            call = ctx.call._replace(anchors=Pairs(*kept))
            worth = worth_of(worth, call.exchange.gather(dloss))
            return _gradient(call, stats, worth, ctx.here)

        return gradient_of(ctx, dloss, later), None, None


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
        return tuple(ops.row_statistics(*call.anchors, call.spec.pack(), call.backend, None)), None
    except Exception as error:
        return (), error


def _rows_of_all(
    call: GlobalCall, weight: Tensor | None
) -> tuple[RowStatistics, RowStatistics, Tensor, Tensor]:
    """Statistics of the rows here and of all, the losses of all, and what each counts."""
    stats, error = _statistics(call)
    call.exchange.confirm(error)
    messages = map(call.exchange.gather, message_of(RowStatistics(*stats)))
    everybody, _ = from_message(*messages)
    x, r = call.anchors.embeddings, call.anchors.ref_emb
    rows: Tensor = ops.row_loss_of(list(everybody), x, r, call.spec.pack(), call.backend, None)
    ones = torch.ones_like(rows) if weight is None else call.exchange.gather(weight)
    return RowStatistics(*stats), everybody, rows, ones


def _gradient(call: GlobalCall, stats: RowStatistics, worth: Tensor, here: slice) -> Tensor:
    """(n, D) in the compute dtype, of the sum over all rows of their losses times what they are
    worth."""
    options = call.spec.pack(), call.backend
    own = [*(s[here].contiguous() for s in stats), worth[here].contiguous()]
    x = call.anchors.embeddings
    # Pairs are compared with pairs: the pull of others' rows is known where all their pairs are.
    triplets = isinstance(call.spec.weighting, Triplet)
    everybody = [*stats, worth] if call.mutual else []
    error, dx, dr = None, x, x
    try:
        if triplets:
            how = True, call.mutual, *options, own[-1]
            _, _, dx, dr = ops.loss_and_gradient(*call.anchors, *how)
        else:
            dx = ops.embedding_gradient(*call.anchors, own, everybody, *options)
    except Exception as found:  # for all to hear
        error = found
    call.exchange.confirm(error)
    if triplets and call.mutual:
        dx = dx + call.exchange.gather_sum(dr)
    return dx if dx.numel() else torch.zeros_like(x, dtype=compute_dtype(x))
