"""Losses of the rows that are here against the rows of all processes, or those of a memory."""

import dataclasses

import torch
from torch import Tensor

from ms_kernels.api.agreement import Here
from ms_kernels.api.learned import (
    Learning,
    learning_of,
    no_kernels,
    refusal_of_values,
    values_of,
)
from ms_kernels.api.modules import PairLoss
from ms_kernels.api.ring import no_wider
from ms_kernels.backends import dispatch
from ms_kernels.backends.interface import Side
from ms_kernels.checks import Pairs
from ms_kernels.engine.autograd import in_public_dtype
from ms_kernels.engine.exchange import Exchange
from ms_kernels.engine.global_loss import GlobalCall, GlobalLoss, RowsHere
from ms_kernels.engine.ring_loss import RingCall, RingLoss
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.made import learned_spec_of, spec_of
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
        anchors = self._against(*self.everybody[:3])
        learning = self._learning(anchors)
        if learning is None and not by_statistics(self.loss):
            return self._of_whole_batch()
        if self._may_lose_hardest(anchors.ref_emb, learning):
            return self._of_whole_batch()
        return self._found(True, anchors, learning)

    def of_memory(self, rows: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        anchors = self._against(no_wider(rows, self.here.embeddings), labels, ids)
        learning = self._learning(anchors)
        if learning is None and self.spec is None:
            rules, backend = (self.loss.rule, self.loss.mining), self.loss.options["backend"]
            given = anchors.embeddings, rules, self.loss.shared, backend
            raise ValueError(f"loss: {refusal_of_values(*given)}")
        return self._found(False, anchors, learning)

    def _against(self, rows: Tensor, labels: Tensor, ids: Tensor | None) -> Pairs:
        assert self.everybody.ids is not None and ids is not None
        own_ids = self.everybody.ids[self.place]
        return Pairs(self.here.embeddings, self.here.labels, own_ids, rows, labels, ids)

    def _may_lose_hardest(self, everybody: Tensor | None, learning: Learning | None) -> bool:
        """Of mining that keeps hardest pairs alone: CUDA's kernels divide the depth by the numbers
        of both sides, so that a gradient of the rows here would not find at its bits what was
        hardest among others' rows. Of up to 1,024 rows, where "auto" takes them, that costs little.
        """
        spec, backend = self.spec, self.loss.options["backend"]
        if learning is not None:
            spec, backend = learning.spec, learning.backend
        if spec is None or everybody is None or not spec.mining.keeps_ties:
            return False
        given = everybody.device.type, everybody.shape[0], spec, everybody.dtype
        return dispatch.resolve(backend, *given) == "cuda"

    def _learning(self, anchors: Pairs) -> Learning | None:
        """What kernels are told of options that learn; None of numbers, or without such kernels."""
        rule, backend = self.loss.rule, self.loss.options["backend"]
        if not rule.learned or backend == "reference":
            return None
        return learning_of(anchors, (rule, self.loss.mining), self.loss.shared, backend)

    def _found(self, mutual: bool, anchors: Pairs, learning: Learning | None) -> Tensor:
        call = self._call(mutual, anchors, learning)
        option_values = None if learning is None else learning.option_values
        given = self.here.embeddings, option_values, self.weight
        return found(self.loss, GlobalLoss, *given, call)

    def call_of_batch(self) -> GlobalCall:
        """What the engine is told of a loss by statistics whose options are numbers."""
        return self._call(True, self._against(*self.everybody[:3]), None)

    def _call(self, mutual: bool, anchors: Pairs, learning: Learning | None) -> GlobalCall:
        spec, backend = self.spec, self.loss.options["backend"]
        if learning is not None:
            spec, backend = learning.spec, learning.backend
        assert spec is not None
        how = spec, self.loss.options["reduction"], backend, self.exchange
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


def ring_call(
    loss: PairLoss, pairs: Pairs, exchange: Exchange, option_values: Tensor | None = None
) -> RingCall:
    """Of the rows here against those of everybody, which come by in blocks. option_values: of a
    rule that learns, which are read."""
    spec, options = learned_spec_of(loss.rule, loss.mining, loss.shared), loss.options
    assert spec is not None
    if option_values is not None:
        spec = spec.with_numbers(option_values)
    own = Side(*pairs[:3])
    return RingCall(own, spec, options["reduction"], options["backend"], exchange)


def ring_loss(loss: PairLoss, here: Here) -> Tensor:
    """By blocks that go round."""
    x, option_values = here.pairs.embeddings, None
    if loss.rule.learned:
        option_values = values_of(loss.rule, x)
    call = ring_call(loss, here.pairs, here.exchange, option_values)
    return found(loss, RingLoss, x, option_values, here.weight, call)


def found(
    loss: PairLoss,
    function: type[torch.autograd.Function],
    x: Tensor,
    option_values: Tensor | None,
    weight: Tensor | None,
    call: GlobalCall | RingCall,
) -> Tensor:
    """What a loss is found to be, as the user sees it."""
    value, *stats = function.apply(x, option_values, weight, call)  # type: ignore[no-untyped-call]
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
    """Whether the loss of an anchor follows from statistics that a backend has, of options that are
    numbers."""
    return loss.fused and loss.options["backend"] != "reference"


def check_remembered(loss: PairLoss) -> None:
    """Of a loss against a memory: it goes by statistics."""
    rule, backend = loss.rule, loss.options["backend"]
    if by_statistics(loss):
        return
    if not rule.learned:
        got = f"{dispatch.names_of(loss.weighting, loss.mining)}; use the memory in one process"
        if loss.fused:
            got = f"backend={backend!r}; use backend='auto'"
        raise ValueError(
            "loss: expected rules of this package and no backend 'reference' in a CrossBatchMemory "
            f"of several processes, got {got}"
        )
    known = learned_spec_of(rule, loss.mining, loss.shared) is not None
    if not known or backend in ("panels", "reference"):
        raise ValueError(f"loss: {no_kernels(rule, backend)}")
