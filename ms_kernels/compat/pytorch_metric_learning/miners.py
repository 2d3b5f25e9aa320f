"""pytorch_metric_learning.miners, those whose pairs a rule can tell replaced."""

from typing import Any

import torch
from pytorch_metric_learning import miners as theirs
from pytorch_metric_learning.miners import *  # noqa: F403
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.compat.pytorch_metric_learning.choosing import rule_of, served_measure
from ms_kernels.compat.pytorch_metric_learning.fallible import Fallible, Unserved
from ms_kernels.compat.pytorch_metric_learning.measures import Measure, record_norms
from ms_kernels.compat.pytorch_metric_learning.mined import MinedPairs
from ms_kernels.compat.pytorch_metric_learning.pairs import Call, by_labels, call_of
from ms_kernels.compat.pytorch_metric_learning.roads import panels
from ms_kernels.rules.mining import Mining, MultiSimilarityMining, ThresholdMining


class Lazy(Fallible):
    """Returns `MinedPairs`, which a loss of ours computes by their rule; anybody else who looks at
    them gets the lists. The numbers of pairs are known when they are asked for."""

    distance: Any
    _last: MinedPairs | None = None
    _numbers: tuple[int, int] = (0, 0)

    def mining(self, measure: Measure) -> Mining:
        raise NotImplementedError

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The mined pairs: see pytorch-metric-learning."""
        if ref_emb is embeddings and ref_labels is labels:
            ref_emb = ref_labels = None
        call = call_of(embeddings, labels, None, ref_emb, ref_labels)
        self.reset_stats()  # type: ignore[attr-defined]
        try:
            mined = self._mined(call)
        except Unserved as option:
            self.fall_back(str(option))
            return super().forward(embeddings, labels, ref_emb, ref_labels)  # type: ignore[misc]
        record_norms(self.distance, call.embeddings, call.ref_emb)
        self.calls["kernels"] += 1
        self._last = mined
        return mined

    def _mined(self, call: Call) -> MinedPairs:
        self.check_served()
        measure = served_measure(self.distance)
        if (call.ref_emb is call.embeddings) != (call.ref_labels is call.labels):
            raise Unserved("ref_emb or ref_labels that are those of the batch, but not both,")
        return MinedPairs(by_labels(call).pairs, self.mining(measure), measure)

    @property
    def num_pos_pairs(self) -> int:
        return self._number(0)

    @num_pos_pairs.setter
    def num_pos_pairs(self, number: int) -> None:
        self._set_number(0, number)

    @property
    def num_neg_pairs(self) -> int:
        return self._number(1)

    @num_neg_pairs.setter
    def num_neg_pairs(self, number: int) -> None:
        self._set_number(1, number)

    def _number(self, kind: int) -> int:
        if self._last is not None:
            return self._last.counts()[kind]
        return self._numbers[kind]

    def _set_number(self, kind: int, number: int) -> None:
        numbers = list(self._numbers)
        numbers[kind] = number
        self._numbers, self._last = (numbers[0], numbers[1]), None


class MultiSimilarityMiner(Lazy, theirs.MultiSimilarityMiner):
    """pytorch-metric-learning's; half is mined in float32."""

    def mining(self, measure: Measure) -> Mining:
        return rule_of(MultiSimilarityMining, self.epsilon)


class PairMarginMiner(Lazy, theirs.PairMarginMiner):
    """pytorch-metric-learning's; half is mined in float32."""

    def mining(self, measure: Measure) -> Mining:
        if self.collect_stats:
            raise Unserved("collect_stats=True")
        margins = map(measure.threshold, (self.pos_margin, self.neg_margin))
        return rule_of(ThresholdMining, *margins)


class BatchHardMiner(Fallible, theirs.BatchHardMiner):
    """pytorch-metric-learning's, a panel of similarities at a time; half is mined in float32."""

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Any:
        call = Call(embeddings, labels, None, ref_emb, ref_labels)
        try:
            self.check_served()
            measure = served_measure(self.distance)
            if (self.allowed_pos_range, self.allowed_neg_range) != (None, None):
                raise Unserved("allowed_pos_range or allowed_neg_range")
        except Unserved as option:
            self.fall_back(str(option))
            return super().mine(embeddings, labels, ref_emb, ref_labels)
        record_norms(self.distance, embeddings, ref_emb)
        self.calls["kernels"] += 1
        anchors, *found = hardest_triplets(measure, by_labels(call).pairs)
        positives, negatives, *similarity = found
        self.set_stats(*(measure.threshold(1) * value for value in similarity))
        return anchors, positives, negatives


def hardest_triplets(measure: Measure, pairs: Pairs) -> tuple[Tensor, ...]:
    """Anchors that have pairs of both kinds, the hardest of each, and their similarities."""
    none = torch.zeros(0, dtype=torch.int64, device=pairs.labels.device)
    found: list[tuple[Tensor, ...]] = [(none, none, none, none.float(), none.float())]
    for panel in panels(measure, pairs):
        near = panel.sim.masked_fill(~panel.positive, torch.inf)
        far = panel.sim.masked_fill(~panel.negative, -torch.inf)
        both = (panel.positive.any(1) & panel.negative.any(1)).nonzero()[:, 0]
        if len(both) == 0:
            continue
        (near_by, positive), (far_by, negative) = near[both].min(1), far[both].max(1)
        found.append((both + panel.rows.start, positive, negative, near_by, far_by))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
