"""pytorch_metric_learning.miners, those whose pairs a rule can tell replaced."""

from typing import Any

import torch
from pytorch_metric_learning import miners as theirs
from pytorch_metric_learning.miners import *  # noqa: F403
from torch import Tensor

from ms_kernels.compat.pytorch_metric_learning.choosing import rule_of, served_measure
from ms_kernels.compat.pytorch_metric_learning.fallible import Fallible, Unserved
from ms_kernels.compat.pytorch_metric_learning.measures import Measure, record_norms
from ms_kernels.compat.pytorch_metric_learning.mined import MinedPairs, MinedTriplets
from ms_kernels.compat.pytorch_metric_learning.mirror import parts_of, without_parts
from ms_kernels.compat.pytorch_metric_learning.pairs import Call, by_labels, call_of
from ms_kernels.compat.pytorch_metric_learning.triplet_mining import hardest_triplets
from ms_kernels.compat.pytorch_metric_learning.unlisted import Unlisted
from ms_kernels.rules.mining import MultiSimilarityMining, ThresholdMining


class Lazy(Fallible):
    """Returns `Unlisted` indices, which a loss of ours computes by their rule; anybody else who
    looks at them gets the lists. How many they are is known when it is asked for."""

    distance: Any
    _last: Unlisted | None = None
    _numbers: tuple[int, int, int] = (0, 0, 0)

    def mined(self, call: Call, measure: Measure) -> Unlisted:
        """`Unserved` before any work."""
        raise NotImplementedError

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        """The mined indices: see pytorch-metric-learning, which mines in a compiled graph."""
        if torch.compiler.is_compiling():
            return super().forward(embeddings, labels, ref_emb, ref_labels)  # type: ignore[misc]
        if ref_emb is embeddings and ref_labels is labels:
            ref_emb = ref_labels = None
        call = call_of(embeddings, labels, None, ref_emb, ref_labels)
        self.reset_stats()  # type: ignore[attr-defined]
        try:
            self.check_served()
            mined = self.mined(call, served_measure(self.distance))
        except Unserved as option:
            self.fall_back(str(option))
            return super().forward(embeddings, labels, ref_emb, ref_labels)  # type: ignore[misc]
        record_norms(self.distance, call.embeddings, call.ref_emb)
        self.calls["kernels"] += 1
        self._last = mined
        return mined

    def __getstate__(self) -> dict[str, Any]:
        numbers = tuple(map(self._number, range(3)))
        return {**self.__dict__, "_numbers": numbers, "_last": None}

    def let_go(self) -> None:
        """Of the rows that were mined last, before others are mined."""
        self._last, self._numbers = None, (0, 0, 0)

    def _number(self, kind: int) -> int:
        return self._numbers[kind] if self._last is None else self._last.counts()[kind]

    def _set_number(self, kind: int, number: int) -> None:
        numbers = list(self._numbers)
        numbers[kind] = number
        self._numbers, self._last = tuple(numbers), None  # type: ignore[assignment]

    num_pos_pairs = property(lambda s: s._number(0), lambda s, n: s._set_number(0, n))
    num_neg_pairs = property(lambda s: s._number(1), lambda s, n: s._set_number(1, n))
    num_triplets = property(lambda s: s._number(2), lambda s, n: s._set_number(2, n))


class MultiSimilarityMiner(Lazy, theirs.MultiSimilarityMiner):
    """pytorch-metric-learning's; half is mined in float32."""

    def mined(self, call: Call, measure: Measure) -> Unlisted:
        same_labels = call.ref_labels is None or call.ref_labels is call.labels
        if (call.ref_emb is call.embeddings) != same_labels:
            raise Unserved("ref_emb or ref_labels that are those of the batch, but not both,")
        rule = rule_of(MultiSimilarityMining, epsilon=self.epsilon)
        return MinedPairs.of(by_labels(call).pairs, rule, measure)


class PairMarginMiner(Lazy, theirs.PairMarginMiner):
    """pytorch-metric-learning's; half is mined in float32."""

    def mined(self, call: Call, measure: Measure) -> Unlisted:
        if self.collect_stats:
            raise Unserved("collect_stats=True")
        pos_margin, neg_margin = map(measure.threshold, (self.pos_margin, self.neg_margin))
        rule = rule_of(ThresholdMining, positive_below=pos_margin, negative_above=neg_margin)
        return MinedPairs.of(by_labels(call).pairs, rule, measure)


class BatchHardMiner(Lazy, theirs.BatchHardMiner):
    """pytorch-metric-learning's, a panel of similarities at a time where it lists triplets; half is
    mined in float32."""

    def mined(self, call: Call, measure: Measure) -> Unlisted:
        if (self.allowed_pos_range, self.allowed_neg_range) != (None, None):
            raise Unserved("allowed_pos_range or allowed_neg_range")
        found = MinedTriplets.of(by_labels(call).pairs, measure)
        if self.collect_stats:
            *_, near, far = hardest_triplets(measure, found.pairs)
            self.set_stats(measure.threshold(1) * near, measure.threshold(1) * far)
        return found


class TripletMarginMiner(Lazy, theirs.TripletMarginMiner):
    """pytorch-metric-learning's, a panel of similarities at a time where it lists triplets; half is
    mined in float32."""

    def mined(self, call: Call, measure: Measure) -> Unlisted:
        if self.collect_stats:
            raise Unserved("collect_stats=True")
        pairs = by_labels(call).pairs
        return MinedTriplets.of(pairs, measure, self.margin, self.type_of_triplets)


REPLACED = BatchHardMiner, MultiSimilarityMiner, PairMarginMiner, TripletMarginMiner

# A package, as there: its modules are found by `mirror`.
__path__: list[str] = []
without_parts(globals(), __name__)
__getattr__ = parts_of(__name__)
