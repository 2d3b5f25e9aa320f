"""Losses of anchors: a number for each, which any reducer takes."""

from dataclasses import dataclass
from typing import Any

import torch
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.compat.pytorch_metric_learning.choosing import (
    Lists,
    are_too_few,
    as_pairs,
    choose,
    rule_of,
    unless_too_few,
)
from ms_kernels.compat.pytorch_metric_learning.fallible import Unserved
from ms_kernels.compat.pytorch_metric_learning.lists import each_once, listed, rows_of_lists
from ms_kernels.compat.pytorch_metric_learning.measures import Measure, record_norms
from ms_kernels.compat.pytorch_metric_learning.mined import MinedPairs
from ms_kernels.compat.pytorch_metric_learning.pairs import (
    Call,
    Chosen,
    by_labels,
    numbers_of_pairs,
)
from ms_kernels.compat.pytorch_metric_learning.reducing import (
    LossDict,
    Totals,
    elements,
    is_linear,
    reduced,
)
from ms_kernels.compat.pytorch_metric_learning.roads import (
    numbers_kept,
    row_losses,
    streamed_rows,
    summed_rows,
)
from ms_kernels.compat.pytorch_metric_learning.served import Served
from ms_kernels.reference import masked_log_sum_exp
from ms_kernels.rules.mining import MultiSimilarityMining, NoMining
from ms_kernels.rules.softmax import NCA, Circle, NPair, SupCon
from ms_kernels.rules.weighting import LiftedStructure, MultiSimilarity, Weighting


class RowLoss(Served):
    """Of all labelled pairs, of those of a miner of ours by its rule, or of lists, in which a pair
    counts once."""

    calls: Any
    zero_losses: Any

    def weighting(self, measure: Measure) -> Weighting:
        raise NotImplementedError

    def part_of_logarithm(self) -> float:
        """What the logarithm of 1 and more counts in theirs; 0 where it is of no such sum."""
        return 0.0

    def least(self, dtype: torch.dtype) -> float:
        """What an active loss is above: under it theirs has lost what is added to 1."""
        return self.part_of_logarithm() * torch.finfo(dtype).eps / 2

    def rounded(self, losses: Tensor) -> Tensor:
        return torch.where(losses > self.least(losses.dtype), losses, 0 * losses)

    def losses_of(self, call: Call, measure: Measure) -> LossDict:
        weighting = self.weighting(measure)
        chosen = choose(call, measure)
        if isinstance(chosen, Chosen):
            if len(call.embeddings) == 0:
                return self.zero_losses()
            if (found := self.in_one_sweep(chosen, measure, weighting)) is not None:
                return {"loss": found}
            losses, positives, negatives = self.of_chosen(chosen, measure, weighting)
            if chosen.mined is not None:
                chosen.mined.keep_counts(positives, negatives)
            positives, negatives = positives.sum(), negatives.sum()
            losses = unless_too_few(self, losses, positives, negatives)
            losses = self.settled(losses, positives, negatives)
            return {"loss": elements(self.rounded(losses))}
        if are_too_few(self, chosen):
            return self.zero_losses()
        return {"loss": elements(self.rounded(self.of_lists(chosen, call, measure, weighting)))}

    def in_one_sweep(
        self, chosen: Chosen, measure: Measure, weighting: Weighting
    ) -> dict[str, Any] | None:
        """Reduced with the losses and their gradient; None where the reducer asks for more, or
        only statistics tell how many pairs there are."""
        bounded = isinstance(chosen.mining, MultiSimilarityMining)
        if not is_linear(self, "loss") or not (bounded or isinstance(chosen.mining, NoMining)):
            return None
        found = summed_rows(measure, weighting, chosen)
        if found is None:
            return None
        self.calls["kernels"] += 1
        total, rows, kept = found
        if bounded:  # which keeps pairs of both kinds of an anchor, or none
            positives = negatives = kept.sum() - 1
        else:
            numbers = numbers_of_pairs(chosen.pairs)
            positives, negatives = (number.sum() for number in numbers)
            if chosen.mined is not None:
                chosen.mined.keep_counts(*numbers)
        total = unless_too_few(self, total, positives, negatives)
        total = self.settled(total, positives, negatives)
        number = rows.new_tensor(len(rows))
        settled = torch.where(total == 0, 0, rows)
        active = (settled > self.least(rows.dtype)).sum
        return reduced(self, "loss", Totals(total, lambda: number, active))

    def of_chosen(
        self, chosen: Chosen, measure: Measure, weighting: Weighting
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(N,) losses and numbers of positive and of negative pairs."""
        losses, stats = row_losses(measure, weighting, chosen)
        self.calls["kernels"] += 1
        return losses, stats.pos_kept, stats.neg_kept

    def of_lists(self, lists: Lists, call: Call, measure: Measure, weighting: Weighting) -> Tensor:
        lists = each_once(as_pairs(lists), max(1, len(call.ref_emb)))
        of = listed(measure, call.embeddings, call.ref_emb, lists)
        losses = rows_of_lists(weighting.row_loss, of)
        self.calls["lists"] += 1
        some = (torch.tensor(len(of.anchors)), torch.tensor(len(of.others)))
        return self.settled(losses, *(count.to(losses.device) for count in some))

    def settled(self, losses: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Where the whole batch has a say in the losses: () numbers of its pairs."""
        return losses


class MultiSimilarityLoss(RowLoss, theirs.MultiSimilarityLoss):
    """pytorch-metric-learning's, by kernels: it does not mine without a miner's tuple."""

    def part_of_logarithm(self) -> float:
        return float(1 / max(self.alpha, self.beta))

    def weighting(self, measure: Measure) -> Weighting:
        base = measure.threshold(self.base)
        return rule_of(MultiSimilarity, alpha=self.alpha, beta=self.beta, base=base)


class SupConLoss(RowLoss, theirs.SupConLoss):
    """pytorch-metric-learning's, by kernels: a batch without pairs of both kinds costs 0."""

    def part_of_logarithm(self) -> float:
        return 1.0

    def weighting(self, measure: Measure) -> Weighting:
        return rule_of(SupCon, temperature=self.temperature)

    def settled(self, losses: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        return torch.where((positives > 0) & (negatives > 0), losses, 0)


class CircleLoss(RowLoss, theirs.CircleLoss):
    """pytorch-metric-learning's, by kernels."""

    def weighting(self, measure: Measure) -> Weighting:
        return rule_of(Circle, m=self.m, gamma=self.gamma)


@dataclass(frozen=True)
class BothMargins(Weighting):
    """`LiftedStructure`, of which an empty side counts as a log-sum-exp of 0."""

    pos_margin: float
    neg_margin: float

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        pull = masked_log_sum_exp(self.pos_margin - similarity, positive)
        push = masked_log_sum_exp(similarity - self.neg_margin, negative)
        pull = torch.where(positive.any(1), pull, 0)
        return (pull + torch.where(negative.any(1), push, 0)).clamp(min=0)


class GeneralizedLiftedStructureLoss(RowLoss, theirs.GeneralizedLiftedStructureLoss):
    """pytorch-metric-learning's, by kernels where each anchor has pairs of both kinds or none; else
    streamed, as an empty side counts there as a log-sum-exp of 0."""

    def weighting(self, measure: Measure) -> Weighting:
        pos_margin, neg_margin = map(measure.threshold, (self.pos_margin, self.neg_margin))
        return rule_of(BothMargins, pos_margin=pos_margin, neg_margin=neg_margin)

    def of_chosen(
        self, chosen: Chosen, measure: Measure, weighting: Weighting
    ) -> tuple[Tensor, Tensor, Tensor]:
        assert isinstance(weighting, BothMargins)
        if both_or_none(chosen):
            both = LiftedStructure(weighting.pos_margin - weighting.neg_margin)
            return super().of_chosen(chosen, measure, both)
        losses = streamed_rows(measure, weighting.row_loss, chosen)
        self.calls["streamed"] += 1
        return losses, *numbers_kept(measure, chosen)


def both_or_none(chosen: Chosen) -> bool:
    """Whether no anchor keeps pairs of one kind alone."""
    if isinstance(chosen.mining, NoMining):
        positives, negatives = numbers_of_pairs(chosen.pairs)
        return bool(((positives > 0) == (negatives > 0)).all())
    return isinstance(chosen.mining, MultiSimilarityMining)


class NCALoss(RowLoss, theirs.NCALoss):
    """pytorch-metric-learning's, by kernels: of anchors that have positives; a miner's tuple weighs
    anchors, it chooses no pairs. 0 of a batch without positives, where theirs is NaN."""

    def part_of_logarithm(self) -> float:
        return 1.0

    def weighting(self, measure: Measure) -> Weighting:
        if self.softmax_scale <= 0:
            raise Unserved(f"softmax_scale={self.softmax_scale}")
        return rule_of(NCA, temperature=1 / self.softmax_scale)

    def losses_of(self, call: Call, measure: Measure) -> LossDict:
        weighting = self.weighting(measure)
        if len(call.embeddings) <= 1:
            return self.zero_losses()
        if call.labels is None:
            raise ValueError("labels are required for this loss function")
        chosen = by_labels(call, drop_rows=True)
        losses, positives, _ = self.of_chosen(chosen, measure, weighting)
        having = (positives > 0).nonzero()[:, 0]
        if len(having) == 0:
            return self.zero_losses()
        weights = self._weights(call)
        losses = self.rounded(losses)
        losses = losses if weights is None else losses * weights.to(losses.dtype)
        return {"loss": elements(losses[having], having)}

    def _weights(self, call: Call) -> Tensor | None:
        """(N,) what anchors count; None where all count 1."""
        indices = call.indices_tuple
        if indices is None:
            return None
        if isinstance(indices, MinedPairs) and isinstance(indices.mining, NoMining):
            # Each anchor has a pair with every candidate, its copy aside.
            number = torch.stack(numbers_of_pairs(indices.pairs)).sum(0)
            return number.to(compute_dtype(call.embeddings)) / number.max().clamp(min=1)
        return loss_and_miner_utils.convert_to_weights(
            tuple(indices),
            call.labels,
            dtype=compute_dtype(call.embeddings),
            using_ref=call.ref_emb is not call.embeddings,
        )


class NPairsLoss(Served, theirs.NPairsLoss):
    """pytorch-metric-learning's, by kernels: of the first pair of each class."""

    def losses_of(self, call: Call, measure: Measure) -> LossDict:
        if call.labels is None:
            raise ValueError("labels are required for this loss function")
        if call.ref_emb is not call.embeddings or call.ref_labels is not call.labels:
            raise ValueError("ref_emb is not supported for this loss function")
        if call.indices_tuple is None:
            anchors, positives = first_pairs(call.labels)
        else:
            find = loss_and_miner_utils.convert_to_pos_pairs_with_unique_labels
            anchors, positives = find(tuple(call.indices_tuple), call.labels)
        self.num_pairs = len(anchors)
        if self.num_pairs == 0:
            return self.zero_losses()
        x = call.embeddings
        classes = torch.arange(len(anchors), device=x.device)
        one_each = Call(x[anchors], classes, None, x[positives], classes.clone())
        record_norms(self.distance, one_each.embeddings, one_each.ref_emb)
        losses, _ = row_losses(measure, NPair(), by_labels(one_each))
        self.calls["kernels"] += 1
        return {"loss": elements(losses, anchors)}

    def record(self, call: Call) -> None:
        """Of the pairs alone, which `losses_of` has found."""


def first_pairs(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Of each class of two or more its first and its second sample; classes ascending."""
    order = labels.argsort(stable=True)
    ascending = labels[order]
    same = ascending[1:] == ascending[:-1]
    starts = torch.ones_like(same)
    starts[1:] = ~same[:-1]
    first = (same & starts).nonzero()[:, 0]
    return order[first], order[first + 1]
