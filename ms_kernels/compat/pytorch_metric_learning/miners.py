"""pytorch_metric_learning.miners, those whose pairs a rule can tell replaced."""

from typing import Any

from pytorch_metric_learning import miners as theirs
from pytorch_metric_learning.miners import *  # noqa: F403
from torch import Tensor

from ms_kernels.compat.pytorch_metric_learning.choosing import rule_of, served_measure
from ms_kernels.compat.pytorch_metric_learning.fallible import Fallible, Unserved
from ms_kernels.compat.pytorch_metric_learning.measures import Measure, record_norms
from ms_kernels.compat.pytorch_metric_learning.mined import MinedPairs
from ms_kernels.compat.pytorch_metric_learning.pairs import Call, by_labels, call_of
from ms_kernels.compat.pytorch_metric_learning.triplet_mining import (
    hardest_triplets,
    triplets_within,
)
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

    def __getstate__(self) -> dict[str, Any]:
        numbers = self._number(0), self._number(1)
        return {**self.__dict__, "_numbers": numbers, "_last": None}

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
        return rule_of(MultiSimilarityMining, epsilon=self.epsilon)


class PairMarginMiner(Lazy, theirs.PairMarginMiner):
    """pytorch-metric-learning's; half is mined in float32."""

    def mining(self, measure: Measure) -> Mining:
        if self.collect_stats:
            raise Unserved("collect_stats=True")
        pos_margin, neg_margin = map(measure.threshold, (self.pos_margin, self.neg_margin))
        return rule_of(ThresholdMining, positive_below=pos_margin, negative_above=neg_margin)


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
        *triplets, near, far = hardest_triplets(measure, by_labels(call).pairs)
        self.set_stats(measure.threshold(1) * near, measure.threshold(1) * far)
        return tuple(triplets)


class TripletMarginMiner(Fallible, theirs.TripletMarginMiner):
    """pytorch-metric-learning's, a panel of similarities at a time; half is mined in float32."""

    def mine(self, embeddings: Tensor, labels: Tensor, ref_emb: Tensor, ref_labels: Tensor) -> Any:
        call = Call(embeddings, labels, None, ref_emb, ref_labels)
        try:
            self.check_served()
            measure = served_measure(self.distance)
            if self.collect_stats:
                raise Unserved("collect_stats=True")
        except Unserved as option:
            self.fall_back(str(option))
            return super().mine(embeddings, labels, ref_emb, ref_labels)
        record_norms(self.distance, embeddings, ref_emb)
        self.calls["kernels"] += 1
        return triplets_within(measure, by_labels(call).pairs, self.margin, self.type_of_triplets)
