"""Losses of the rows that are here against the rows of all processes, or those of a memory."""

import dataclasses

import torch
from torch import Tensor

from ms_kernels.api.agreement import Here
from ms_kernels.api.modules import PairLoss
from ms_kernels.api.ring import no_wider
from ms_kernels.backends.interface import Side
from ms_kernels.checks import Pairs
from ms_kernels.engine.autograd import in_public_dtype
from ms_kernels.engine.exchange import Exchange
from ms_kernels.engine.global_loss import GlobalCall, GlobalLoss, RowsHere
from ms_kernels.engine.ring_loss import RingCall
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.made import spec_of
from ms_kernels.rules.weighting import Weighting


class GlobalLosses:
    """Of the rows here against those of everybody, or of a memory."""

    def __init__(
        self,
        loss: PairLoss,
        here: Pairs,
        everybody: Pairs,
        weight: Tensor | None,
        exchange: Exchange,
    ) -> None:
        self.loss, self.here, self.everybody = loss, here, everybody
        self.weight, self.exchange = weight, exchange
        self.spec = spec_of(loss.rule, loss.mining, loss.shared)
        self.place = exchange.own

    def of_batch(self) -> Tensor:
        if not by_statistics(self.loss):
            return self._of_whole_batch()
        return self._found(self.call_of_batch())

    def of_memory(self, rows: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        rows = no_wider(rows, self.here.embeddings)
        return self._found(self._call(False, rows, labels, ids))

    def _found(self, call: GlobalCall) -> Tensor:
        return found(self.loss, GlobalLoss, self.here.embeddings, self.weight, call)

    def call_of_batch(self) -> GlobalCall:
        """What the engine is told of a loss by statistics."""
        rows, labels, ids, *_ = self.everybody
        assert ids is not None
        return self._call(True, rows, labels, ids)

    def _call(self, mutual: bool, rows: Tensor, labels: Tensor, ids: Tensor) -> GlobalCall:
        assert self.spec is not None
        x, own_labels, *_ = self.here
        assert self.everybody.ids is not None
        own_ids = self.everybody.ids[self.place]
        anchors = Pairs(x, own_labels, own_ids, rows, labels, ids)
        options = self.loss.options
        how = self.spec, options["reduction"], options["backend"], self.exchange
        return GlobalCall(anchors, mutual, *how)

    def _of_whole_batch(self) -> Tensor:
        """On every process, of which each has the gradient of its rows."""
        rows, labels, ids, *_ = self.everybody
        first, end = self.place.start, self.place.stop
        mixed = torch.cat([rows[:first], self.here.embeddings, rows[end:]])
        weight = None if self.weight is None else self.exchange.gather(self.weight)
        loss = self.loss.with_weighting(_share_of(self.loss.rule, self.exchange.size))
        value, error = mixed, None
        try:
            value = loss.compute((mixed, labels, None, None, ids, None), (None, None, weight))
        except Exception as found:  # for all to hear
            error = found
        self.exchange.confirm(error)
        if loss.keep_statistics:
            self.loss.keep(RowStatistics(*(s[self.place] for s in loss.statistics)))
        if value.ndim == 0:
            return value
        return RowsHere.apply(value, self.exchange)  # type: ignore[no-any-return, no-untyped-call]


def everybody_of(here: Here, with_ids: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, labels and, where they are more than places, ids of all."""
    rows = here.exchange.gather(here.pairs.embeddings.detach())
    codes = [here.pairs.labels]
    if with_ids and here.pairs.ids is not None:
        codes.append(here.pairs.ids)
    labels, *ids = here.exchange.gather(torch.stack(codes, 1)).T.contiguous()
    return rows, labels, ids[0] if ids else None


def gathered(loss: PairLoss, here: Here) -> GlobalLosses:
    everybody = Pairs(*everybody_of(here, True), None, None, None)
    return GlobalLosses(loss, here.pairs, everybody, here.weight, here.exchange)


def ring_call(loss: PairLoss, pairs: Pairs, exchange: Exchange) -> RingCall:
    """Of the rows here against those of everybody, which come by in blocks."""
    spec, options = spec_of(loss.rule, loss.mining, loss.shared), loss.options
    assert spec is not None
    own = Side(*pairs[:3])
    return RingCall(own, spec, options["reduction"], options["backend"], exchange)


def found(
    loss: PairLoss,
    function: type[torch.autograd.Function],
    x: Tensor,
    weight: Tensor | None,
    call: GlobalCall | RingCall,
) -> Tensor:
    """What a loss is found to be, as the user sees it."""
    value, *stats = function.apply(x, weight, call)  # type: ignore[no-untyped-call]
    if loss.keep_statistics:
        loss.keep(RowStatistics(*stats))
    return in_public_dtype(value, x, loss.options["reduction"])


def _share_of(weighting: Weighting, size: int) -> Weighting:
    """Of options that learn each process has a share of the derivative, as it has of the rows: over
    processes they add up."""
    learned = weighting.learned
    if not learned:
        return weighting
    parts = {name: value / size for name, value in learned.items()}
    shares = {name: part + (learned[name] - part).detach() for name, part in parts.items()}
    return dataclasses.replace(weighting, **shares)


def by_statistics(loss: PairLoss) -> bool:
    """Whether the loss of an anchor follows from statistics that a backend has."""
    return loss.fused and loss.options["backend"] != "reference"
