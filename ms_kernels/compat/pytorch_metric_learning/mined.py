"""Pairs that are not listed until somebody looks: a loss of ours computes them by their rule."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.pairs import (
    Call,
    Chosen,
    by_labels,
    candidates_of,
    count_of_label,
)
from ms_kernels.compat.pytorch_metric_learning.roads import list_pairs
from ms_kernels.rules.mining import NO_MINING, Mining, MultiSimilarityMining, version_of


class _Unlisted(torch.Tensor):
    """What lies in the tuple as C code sees it, such as torch.cat: sent on to the lists."""

    @classmethod
    def __torch_function__(
        cls, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if not any(isinstance(arg, MinedPairs) for arg in args):
            raise RuntimeError("a mined pair was taken out of its tuple unseen; use tuple(pairs)")
        listed = (tuple(arg) if isinstance(arg, MinedPairs) else arg for arg in args)
        return func(*listed, **(kwargs or {}))


_UNLISTED = torch.zeros(0, dtype=torch.int64).as_subclass(_Unlisted)


class MinedPairs(tuple[Tensor, ...]):
    """(anchors, positives, anchors, negatives), as pytorch-metric-learning's miners return them,
    listed when unpacked, indexed or iterated, and not before.

    Pairs of a sample with its own copy, told by ids, are left out after mining, as there: the copy
    counts among the positives that mining looks at. What the tuple holds are the rows, detached.
    """

    pairs: Pairs
    mining: Mining
    measure: Measure | None  # None of all pairs, which are the same however they are measured
    _sides: tuple[weakref.ref[Tensor], weakref.ref[Tensor]]
    _versions: tuple[int, ...]
    _lists: tuple[Tensor, ...] | None
    _counts: tuple[Tensor, Tensor] | None
    _gathered: tuple[weakref.ref[Tensor], weakref.ref[Tensor] | None] | None

    def __new__(cls, pairs: Pairs, mining: Mining, measure: Measure | None) -> MinedPairs:
        self = super().__new__(cls, (_UNLISTED,) * 4)
        x, labels, ids, r, ref_labels, ref_ids = pairs
        self._sides = weakref.ref(x), weakref.ref(candidates_of(pairs))
        r = None if r is None else r.detach()
        self.pairs = Pairs(x.detach(), labels, ids, r, ref_labels, ref_ids)
        self.mining, self.measure = mining, measure
        self._versions = _versions(self.pairs)
        self._lists = self._counts = self._gathered = None
        return self

    def chosen(self, embeddings: Tensor, ref_emb: Tensor, measure: Measure) -> Chosen | None:
        """The same for a loss of these rows; None of other rows, or of what is measured otherwise:
        there only the lists tell which pairs they are."""
        x, r = self._sides
        if x() is not embeddings or r() is not ref_emb or self.measure not in (None, measure):
            return None
        self._check_versions()
        if not self._leaves_out_before():
            return None
        _, labels, ids, refs, ref_labels, ref_ids = self.pairs
        candidates = None if refs is None else ref_emb
        pairs = Pairs(embeddings, labels, ids, candidates, ref_labels, ref_ids)
        return Chosen(pairs, self.mining, self)

    def at(
        self,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
    ) -> MinedPairs:
        """The same of equal rows that lie elsewhere. ids: told anew, if they are given; pairs of
        equal ids, which are of one label, are left out."""
        _, labels, own_ids, _, ref_labels, own_ref_ids = self.pairs
        if ids is None:
            ids, ref_ids = own_ids, own_ref_ids
        pairs = Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids)
        return MinedPairs(pairs, self.mining, self.measure)

    def gathered_from(self, embeddings: Tensor, ref_emb: Tensor | None) -> MinedPairs:
        """Itself, of rows of all processes, of which these are those of this one."""
        self._gathered = weakref.ref(embeddings), None if ref_emb is None else weakref.ref(ref_emb)
        return self

    def is_gathered_from(self, embeddings: Tensor, ref_emb: Tensor | None) -> bool:
        if self._gathered is None:
            return False
        own, refs = self._gathered
        return own() is embeddings and (None if refs is None else refs()) is ref_emb

    def lists(self) -> tuple[Tensor, ...]:
        if self._lists is None:
            self._check_versions()
            self._lists = list_pairs(self.measure, self.pairs, self.mining)
        return self._lists

    def counts(self) -> tuple[int, int]:
        """Numbers of positive and of negative pairs."""
        if self._lists is None and self._counts is not None:
            return int(self._counts[0]), int(self._counts[1])
        anchors, _, others, _ = self.lists()
        return len(anchors), len(others)

    def keep_counts(self, pos_kept: Tensor, neg_kept: Tensor) -> None:
        """Of each anchor, as a loss has found them."""
        self._counts = pos_kept.sum(), neg_kept.sum()

    def _leaves_out_before(self) -> bool:
        """Whether leaving out a sample's copy after mining is leaving it out before."""
        if self.pairs.ids is None or not isinstance(self.mining, MultiSimilarityMining):
            return True
        # The nearest positive bounds nothing, unless it is the only one.
        nearest = self.measure is not None and self.measure.nearest_is_itself
        return nearest and not bool((count_of_label(self.pairs) == 1).any())

    def _check_versions(self) -> None:
        if _versions(self.pairs) != self._versions:
            raise RuntimeError(
                "indices_tuple: expected embeddings that are as they were when they were mined, "
                "got some that were written into; mine after that, or keep tuple(miner(...))"
            )

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.lists())

    def __getitem__(self, index: SupportsIndex | slice) -> Any:
        return self.lists()[index]

    def __add__(self, other: Any) -> Any:
        return self.lists() + tuple(other)

    def __radd__(self, other: Any) -> Any:
        return tuple(other) + self.lists()

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> Any:
        return tuple, (list(self.lists()),)

    def __repr__(self) -> str:
        return f"MinedPairs({self.mining!r})"


def all_pairs(call: Call) -> MinedPairs:
    """By their labels, as of a miner that keeps every pair."""
    return MinedPairs(by_labels(call).pairs, NO_MINING, None)


def _versions(pairs: Pairs) -> tuple[int, int]:
    return version_of(pairs.embeddings), version_of(candidates_of(pairs))
