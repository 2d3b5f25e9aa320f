"""Mined pairs and triplets that a loss of ours computes by their rule."""

from __future__ import annotations

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.pairs import (
    Call,
    Chosen,
    by_labels,
    count_of_label,
    numbers_of_pairs,
)
from ms_kernels.compat.pytorch_metric_learning.roads import (
    list_pairs,
    numbers_kept,
    row_losses,
)
from ms_kernels.compat.pytorch_metric_learning.triplet_mining import (
    hardest_triplets,
    triplets_within,
)
from ms_kernels.compat.pytorch_metric_learning.unlisted import Unlisted
from ms_kernels.rules.mining import NO_MINING, HardestMining, Mining, MultiSimilarityMining
from ms_kernels.rules.triplet import Triplet


class MinedPairs(Unlisted):
    """(anchors, positives, anchors, negatives) that a mining rule keeps.

    Pairs of a sample with its own copy, told by ids, are left out after mining, as
    pytorch-metric-learning does: the copy counts among the positives that mining looks at.
    """

    mining: Mining
    _counts: tuple[Tensor, Tensor] | None

    @classmethod
    def of(cls, pairs: Pairs, mining: Mining, measure: Measure | None) -> MinedPairs:
        self = cls(pairs, measure)
        self.mining, self._counts = mining, None
        return self

    def again(self, pairs: Pairs) -> MinedPairs:
        return self.of(pairs, self.mining, self.measure)

    def made(self) -> tuple[Tensor, ...]:
        return list_pairs(self.measure, self.pairs, self.mining)

    def chosen(self, embeddings: Tensor, ref_emb: Tensor, measure: Measure) -> Chosen | None:
        pairs = self.live(embeddings, ref_emb, measure)
        if pairs is None or not self._leaves_out_before():
            return None
        return Chosen(pairs, self.mining, self)

    def counts(self) -> tuple[int, int, int]:
        if self._lists is None and self.measure is not None and self._leaves_out_before():
            if self._counts is None:
                self.check_versions()
                chosen = Chosen(self.pairs, self.mining, self)
                self.keep_counts(*numbers_kept(self.measure, chosen))
            assert self._counts is not None
            return int(self._counts[0]), int(self._counts[1]), 0
        anchors, _, others, _ = self.lists()
        return len(anchors), len(others), 0

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

    def __repr__(self) -> str:
        return f"MinedPairs({self.mining!r})"


def all_pairs(call: Call) -> MinedPairs:
    """By their labels, as of a miner that keeps every pair."""
    return MinedPairs.of(by_labels(call).pairs, NO_MINING, None)


class MinedTriplets(Unlisted):
    """(anchors, positives, negatives): the hardest of each anchor, or those within a margin.

    margin: None of the hardest. kind: see `triplets_within`.
    """

    places = 3
    margin: float | None
    kind: str

    @classmethod
    def of(
        cls, pairs: Pairs, measure: Measure, margin: float | None = None, kind: str = "all"
    ) -> MinedTriplets:
        self = cls(pairs, measure)
        self.margin, self.kind = margin, kind
        return self

    def again(self, pairs: Pairs) -> MinedTriplets:
        assert self.measure is not None
        return self.of(pairs, self.measure, self.margin, self.kind)

    def made(self) -> tuple[Tensor, ...]:
        assert self.measure is not None
        if self.margin is None:
            return hardest_triplets(self.measure, self.pairs)[:3]
        return triplets_within(self.measure, self.pairs, self.margin, self.kind)

    def chosen(
        self, embeddings: Tensor, ref_emb: Tensor, measure: Measure, margin: float | None
    ) -> Chosen | None:
        """Triplets among which are all that cost something. margin: of a hinge, None of another
        loss. Of the hardest those that tie with them are there too."""
        pairs = self.live(embeddings, ref_emb, measure)
        if pairs is None or self.margin is None:
            return None if pairs is None else Chosen(pairs, HardestMining(), self)
        every = self.kind == "all" and margin is not None and margin <= self.margin
        return Chosen(pairs, NO_MINING, self) if every else None

    def number(self) -> Tensor:
        """() how many they are."""
        if self.margin is None:
            positives, negatives = numbers_of_pairs(self.pairs)
            return ((positives > 0) & (negatives > 0)).sum()
        if self._lists is None and self.kind == "all" and self.measure is not None:
            chosen = Chosen(self.pairs)
            _, stats = row_losses(self.measure, Triplet(self.margin), chosen)
            return stats.pos_moment.double().sum()
        return torch.tensor(len(self.lists()[0]))

    def counts(self) -> tuple[int, int, int]:
        return 0, 0, int(self.number())

    def __repr__(self) -> str:
        rule = "hardest" if self.margin is None else f"{self.kind} within {self.margin}"
        return f"MinedTriplets({rule})"
