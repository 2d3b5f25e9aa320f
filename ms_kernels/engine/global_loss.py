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
    """stats: of the rows that are here."""

    loss: Tensor
    stats: RowStatistics
    gradient: "Gradient"


class Gradient(NamedTuple):
    """dx: (n, D) in the compute dtype, None where nobody wants one. doptions: (k,), what the losses
    of the rows here add to that of options that learn."""

    dx: Tensor | None = None
    doptions: Tensor | None = None


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

    def reduced(self, weight: Tensor | None, option_values: Tensor | None = None) -> Reduced:
        """Of any reduction but "none"."""
        stats, everybody, rows, ones = _rows_of_all(self, weight, option_values)
        kept = everybody.pos_kept + everybody.neg_kept
        loss = reduce_rows(rows, kept, self.reduction, ones)
        found = Gradient()
        # A collective of some rules: all go in if one has to.
        if True in self.exchange.gradients:
            worth = ones / divisor_of(ones, kept, self.reduction)
            found = _gradient(self, everybody, worth, self.exchange.own, option_values)
        return Reduced(loss, stats, found)


# Of the rows that are here: from what losses counted, their statistics, options that learn, and the
# rows of the call.
LaterGradient = Callable[[Tensor, RowStatistics, Tensor | None, list[Tensor]], Gradient]


def gradient_of(ctx: Any, dloss: Tensor | None, later: LaterGradient) -> Gradient:
    """What a backward pass gives the embeddings and options that learn: the gradient of forward
    scaled, or, where losses of rows had to wait for what they are worth, `later`."""
    refuse_second_derivative("DistributedLoss")
    if dloss is None:
        return Gradient()
    saved = ctx.saved_tensors
    if len(saved) > len(Gradient._fields):
        _, option_values, worth, *kept = saved
        with products_of(ctx.precision), below_autograd():
            dx, doptions = later(worth, RowStatistics(*kept[:7]), option_values, kept[7:])
    else:
        dx, doptions = (None if d is None else d * dloss for d in saved)
    return Gradient(None if dx is None else dx.to(ctx.dtype), doptions)


def worth_of(counted: Tensor, dloss: Tensor) -> Tensor:
    """What does not count weighs nothing, whatever comes in."""
    return torch.where(counted == 0, 0, counted * dloss)


class GlobalLoss(torch.autograd.Function):
    """Of the rows of all processes: sum, mean or mean_valid; or of each that is here."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        option_values: Tensor | None,
        weight: Tensor | None,
        call: GlobalCall,
    ) -> tuple[Tensor, ...]:
        ctx.dtype, ctx.here = embeddings.dtype, call.exchange.own
        with below_autograd():
            if call.reduction != "none":
                loss, stats, found = call.reduced(weight, option_values)
                ctx.save_for_backward(*found)
            else:  # candidates may have changed until backward, which autograd is to notice
                stats, everybody, rows, ones = _rows_of_all(call, weight, option_values)
                kept = stats.pos_kept + stats.neg_kept
                loss = reduce_rows(rows[ctx.here], kept, "none", ones[ctx.here])
                ctx.call = call._replace(anchors=None)  # type: ignore[arg-type]
                ctx.precision = precision_now()
                keep(ctx, None, option_values, ones, *everybody, *call.anchors)
        constants_of(ctx, *stats)
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        def later(
            worth: Tensor, stats: RowStatistics, option_values: Tensor | None, kept: list[Tensor]
        ) -> Gradient:
            call = ctx.call._replace(anchors=Pairs(*kept))
            worth = worth_of(worth, call.exchange.gather(dloss))
            return _gradient(call, stats, worth, ctx.here, option_values)

        return *gradient_of(ctx, dloss, later), None, None


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


def _statistics(
    call: GlobalCall, option_values: Tensor | None
) -> tuple[tuple[Tensor, ...], BaseException | None]:
    """Those of the rows here; what goes wrong is for all to hear."""
    how = call.spec.pack(), call.backend, option_values
    try:
        return tuple(ops.row_statistics(*call.anchors, *how)), None
    except Exception as error:
        return (), error


def _rows_of_all(
    call: GlobalCall, weight: Tensor | None, option_values: Tensor | None
) -> tuple[RowStatistics, RowStatistics, Tensor, Tensor]:
    """Statistics of the rows here and of all, the losses of all, and what each counts."""
    stats, error = _statistics(call, option_values)
    call.exchange.confirm(error)
    messages = map(call.exchange.gather, message_of(RowStatistics(*stats)))
    everybody, _ = from_message(*messages)
    x, r = call.anchors.embeddings, call.anchors.ref_emb
    how = call.spec.pack(), call.backend, option_values
    rows: Tensor = ops.row_loss_of(list(everybody), x, r, *how)
    ones = torch.ones_like(rows) if weight is None else call.exchange.gather(weight)
    return RowStatistics(*stats), everybody, rows, ones


def _gradient(
    call: GlobalCall,
    stats: RowStatistics,
    worth: Tensor,
    here: slice,
    option_values: Tensor | None,
) -> Gradient:
    """Of the sum over all rows of their losses times what they are worth."""
    options = call.spec.pack(), call.backend
    own = [*(s[here].contiguous() for s in stats), worth[here].contiguous()]
    x = call.anchors.embeddings
    # Pairs are compared with pairs: the pull of others' rows is known where all their pairs are.
    triplets = isinstance(call.spec.weighting, Triplet)
    everybody = [*stats, worth] if call.mutual else []
    error, dx, dr = None, x, x
    doptions: Tensor | None = None
    try:
        if option_values is not None:
            # One call a term: a term is of anchors, and the rows here are those of one alone.
            given = own, option_values, True, call.mutual and triplets
            dx, dr, doptions = ops.learned_gradient(*call.anchors, *given, *options)
            if call.mutual and not triplets:
                others = everybody, option_values, False, True
                pulled = ops.learned_gradient(*_exchanged(call.anchors), *others, *options)[1]
                dx = dx + pulled
        elif triplets:
            how = True, call.mutual, *options, own[-1]
            _, _, dx, dr = ops.loss_and_gradient(*call.anchors, *how)
        else:
            dx = ops.embedding_gradient(*call.anchors, own, everybody, *options)
    except Exception as found:  # for all to hear
        error = found
    call.exchange.confirm(error)
    if triplets and call.mutual:
        dx = dx + call.exchange.gather_sum(dr)
    dx = dx if dx.numel() else torch.zeros_like(x, dtype=compute_dtype(x))
    return Gradient(dx, doptions)


def _exchanged(pairs: Pairs) -> tuple[Tensor | None, ...]:
    """With candidates as anchors."""
    x, labels, ids, r, ref_labels, ref_ids = pairs
    return r, ref_labels, ref_ids, x, labels, ids
