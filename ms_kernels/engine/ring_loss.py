"""The loss of the rows of all processes, of which each holds its own and two visiting blocks.

Blocks of rows go round in a ring, and what an anchor needs is joined from them. The hardest pairs
of all bound what mining keeps: rules that ask for them take a round to find them before the round
that sums. What a pair weighs follows from both rows and their statistics, so in the round of the
gradient a block brings its own, and nothing has to go back.
"""

from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends import dispatch
from ms_kernels.backends.interface import Known, Side, Term, compute_dtype
from ms_kernels.engine import ops
from ms_kernels.engine.counted_pairs import gradient_of_options
from ms_kernels.engine.exchange import Exchange, from_message, message_of
from ms_kernels.engine.global_loss import Gradient, Reduced, gradient_of, worth_of
from ms_kernels.engine.reduction import divisor_from, reduce_rows, share_of_divisor
from ms_kernels.engine.refusals import below_autograd
from ms_kernels.engine.saved import constants_of, keep, precision_now
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import WeightSums

# What is done with a visiting block: its rows, and what it brings besides.
Visit = Callable[[ModuleType, Side, list[Tensor]], None]


class RingCall(NamedTuple):
    """own: the rows that are here; they have ids. spec: of options that learn it has their
    values."""

    own: Side
    spec: PairSpec
    reduction: str
    backend: str
    exchange: Exchange

    def reduced(self, weight: Tensor | None, option_values: Tensor | None = None) -> Reduced:
        """Of any reduction but "none"; the loss is the same to the bit on every process."""
        stats, rows, ones = _rows_here(self, weight)
        kept = stats.pos_kept + stats.neg_kept
        own = reduce_rows(rows, kept, "sum", ones)
        share = share_of_divisor(ones, kept, self.reduction)
        total, shares = self.exchange.sum_of(torch.stack([own, share]))
        divisor = divisor_from(shares, self.reduction)
        found = Gradient()
        # Every process has its part in a round.
        if True in self.exchange.gradients:
            found = _gradient(self, Term(stats, ones / divisor), option_values)
        return Reduced(total / divisor, stats, found)


class RingLoss(torch.autograd.Function):
    """Of the rows of all processes: sum, mean or mean_valid; or of each that is here."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        option_values: Tensor | None,
        weight: Tensor | None,
        call: RingCall,
    ) -> tuple[Tensor, ...]:
        ctx.dtype = embeddings.dtype
        with below_autograd():
            if call.reduction != "none":
                loss, stats, found = call.reduced(weight, option_values)
                ctx.save_for_backward(*found)
            else:  # rows may have changed until backward, which autograd is to notice
                stats, rows, ones = _rows_here(call, weight)
                loss = reduce_rows(rows, stats.pos_kept + stats.neg_kept, "none", ones)
                ctx.call = call._replace(own=None)  # type: ignore[arg-type]
                ctx.precision = precision_now()
                keep(ctx, None, option_values, ones, *stats, *call.own)
        constants_of(ctx, *stats)
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        def later(
            worth: Tensor, stats: RowStatistics, option_values: Tensor | None, kept: list[Tensor]
        ) -> Gradient:
            assert dloss is not None
            call = ctx.call._replace(own=Side(*kept))
            return _gradient(call, Term(stats, worth_of(worth, dloss)), option_values)

        return *gradient_of(ctx, dloss, later), None, None


def _rows_here(call: RingCall, weight: Tensor | None) -> tuple[RowStatistics, Tensor, Tensor]:
    """Their statistics, their losses, and what each counts."""
    stats = _statistics(call)
    options = call.spec.pack(), call.backend
    rows: Tensor = ops.row_loss_of(list(stats), call.own.embeddings, None, *options, None)
    return stats, rows, torch.ones_like(rows) if weight is None else weight


def _statistics(call: RingCall) -> RowStatistics:
    """Of the rows here, after two rounds at most; of a rule whose positives need the sum of all
    negatives three."""
    known = _hardest(call) if call.spec.mining.needs_hardest else None
    stats = _joined(call, known)
    if call.spec.weighting.pos_follows_neg:
        again = _joined(call, Known(stats.hardest_positive, stats.hardest_negative, stats.neg_sum))
        stats = stats._replace(pos_sum=again.pos_sum, pos_moment=again.pos_moment)
    nothing = stats.neg_sum.isnan()  # of a row that is not finite
    pos_kept, neg_kept = (torch.where(nothing, 0, count) for count in stats[4:6])
    return stats._replace(pos_kept=pos_kept, neg_kept=neg_kept)


def _hardest(call: RingCall) -> Known:
    """As mining takes them: of several hardest negatives the last."""
    x = call.own.embeddings
    many = call.spec.mining.hardest_negatives
    least = x.new_full((x.shape[0],), torch.inf, dtype=compute_dtype(x))
    most = -least[:, None].expand(-1, many)

    def visit(module: ModuleType, block: Side, _: list[Tensor]) -> None:
        nonlocal least, most
        positive, negatives = module.hardest_of_block(call.own, block, call.spec)
        least = torch.minimum(least, positive)
        most = torch.cat([most, negatives], 1).topk(many, 1, sorted=True).values

    call.exchange.confirm(_round(call, [], visit))
    return Known(least, most[:, -1].contiguous())


def _joined(call: RingCall, known: Known | None) -> RowStatistics:
    stats = _nothing(call)

    def visit(module: ModuleType, block: Side, _: list[Tensor]) -> None:
        nonlocal stats
        found = module.block_statistics(call.own, block, call.spec, known)
        stats = _join(stats, found, call.spec.weighting.log_sums)

    call.exchange.confirm(_round(call, [], visit))
    return stats


def _nothing(call: RingCall) -> RowStatistics:
    """Statistics of no pairs."""
    x = call.own.embeddings
    none = x.new_zeros(x.shape[0], dtype=compute_dtype(x))
    far, count = none + torch.inf, torch.zeros_like(none, dtype=torch.int64)
    pos_sum, neg_sum = (-far if log else none for log in call.spec.weighting.log_sums)
    return RowStatistics(far, -far, pos_sum, neg_sum, count, count, none)


def _join(a: RowStatistics, b: RowStatistics, log_sums: tuple[bool, bool]) -> RowStatistics:
    """Of the candidates of both."""
    add = [torch.logaddexp if log else torch.add for log in log_sums]
    return RowStatistics(
        torch.minimum(a.hardest_positive, b.hardest_positive),
        torch.maximum(a.hardest_negative, b.hardest_negative),
        add[0](a.pos_sum, b.pos_sum),
        add[1](a.neg_sum, b.neg_sum),
        a.pos_kept + b.pos_kept,
        a.neg_kept + b.neg_kept,
        a.pos_moment + b.pos_moment,
    )


def _gradient(call: RingCall, own: Term, option_values: Tensor | None) -> Gradient:
    """Of the sum over all rows of their losses times what they are worth."""
    x = call.own.embeddings
    dx = torch.zeros_like(x, dtype=compute_dtype(x))
    sums = dx.new_zeros(len(WeightSums._fields))

    def visit(module: ModuleType, block: Side, message: list[Tensor]) -> None:
        stats, (worth,) = from_message(*message)
        dx.add_(module.embedding_gradient(call.own, block, call.spec, own, Term(stats, worth)))
        if option_values is not None:
            sums.add_(module.weight_sums(call.own, block, call.spec, own))

    call.exchange.confirm(_round(call, message_of(own.stats, own.dloss), visit))
    if option_values is None:
        return Gradient(dx)
    return Gradient(dx, gradient_of_options(call.spec, option_values, *own, sums))


def _round(call: RingCall, besides: list[Tensor], visit: Visit) -> BaseException | None:
    """One round of the ring. An error ends no round, or others would wait for blocks: it is
    returned at the end."""
    error: BaseException | None = None

    def look(tensors: list[Tensor]) -> None:
        nonlocal error
        x, labels, ids, *brought = tensors
        if error is not None or not x.shape[0] or not call.own.embeddings.shape[0]:
            return
        try:
            visit(_module(call), Side(x, labels, ids), brought)
        except Exception as found:
            error = found

    x, labels, ids = call.own
    assert ids is not None
    own = [x.contiguous(), labels.contiguous(), ids.contiguous(), *besides]
    call.exchange.pass_around(own, look)
    return error


def _module(call: RingCall) -> ModuleType:
    x, most = call.own.embeddings, max(call.exchange.counts)  # the same on every process
    name = dispatch.resolve_blocks(call.backend, x.device.type, most, call.spec, x.dtype)
    return dispatch.MODULES[name]
