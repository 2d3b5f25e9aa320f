"""Losses of pairs: reduced from sums and counts, or listed."""

import math
from collections.abc import Callable

import torch
from pytorch_metric_learning import losses as theirs
from torch import Tensor
from torch.nn.functional import softplus

from ms_kernels.checks import MOST_OPTION
from ms_kernels.compat.pytorch_metric_learning.choosing import (
    Lists,
    are_too_few,
    as_pairs,
    choose,
    rule_of,
    unless_too_few,
)
from ms_kernels.compat.pytorch_metric_learning.fallible import Unserved
from ms_kernels.compat.pytorch_metric_learning.lists import listed, rows_of_lists
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.pairs import (
    Call,
    Chosen,
)
from ms_kernels.compat.pytorch_metric_learning.reducing import (
    LossDict,
    Totals,
    are_summed,
    is_linear,
    reduced,
    singles,
    unserved_reducer,
)
from ms_kernels.compat.pytorch_metric_learning.roads import (
    counted_rows,
    numbers_kept,
    row_losses,
    summed_rows,
)
from ms_kernels.compat.pytorch_metric_learning.served import Served
from ms_kernels.engine.summed import Summed
from ms_kernels.reference import masked_log_sum_exp
from ms_kernels.rules.mining import NoMining, ThresholdMining
from ms_kernels.rules.softmax import NTXent
from ms_kernels.rules.sums import FAR
from ms_kernels.rules.weighting import Contrastive

# A hinge that no similarity reaches.
FARTHEST = MOST_OPTION


class ContrastiveLoss(Served, theirs.ContrastiveLoss):
    """pytorch-metric-learning's, by kernels: positives and negatives are reduced apart."""

    def losses_of(self, call: Call, measure: Measure) -> LossDict:
        pull, push = map(measure.threshold, (self.pos_margin, self.neg_margin))
        hinge = rule_of(Contrastive, positive_margin=pull, negative_margin=push)
        chosen = choose(call, measure)
        if not isinstance(chosen, Chosen):
            return self._of_lists(as_pairs(chosen), call, measure, hinge)
        names = "pos_loss", "neg_loss"
        if option := unserved_reducer(self, names, ("mean", "sum", "active", "anchors")):
            raise Unserved(option)
        positives, negatives = numbers_kept(measure, chosen)
        if chosen.mined is not None:
            chosen.mined.keep_counts(positives, negatives)
        both = positives.sum(), negatives.sum()
        self.calls["kernels"] += 1
        found = {}
        if are_summed(self, names) and (summed := of_bounded(measure, hinge, chosen)) is not None:
            # What either kind adds to the sum nobody sees: all of it stands for the positives.
            total = unless_too_few(self, summed.total, *both)
            shares = total, torch.zeros_like(total)
            for name, share, number in zip(names, shares, both, strict=True):
                found[name] = reduced(self, name, Totals(share, number.clone, number.clone))
            return found
        for name, kept, number in zip(names, (True, False), (positives, negatives), strict=True):
            summed = of_one_kind(measure, hinge, chosen, kept) if is_linear(self, name) else None
            if summed is not None:
                total = unless_too_few(self, summed.total, *both)
                found[name] = reduced(self, name, Totals(total, number.sum, summed.kept.sum))
                continue
            losses, active = one_kind(measure, hinge, chosen, kept)
            losses = unless_too_few(self, losses, *both)
            means = losses / number.clamp(min=1)
            totals = Totals(losses.sum(), number.sum, active, means)
            found[name] = reduced(self, name, totals)
        return found

    def _of_lists(self, lists: Lists, call: Call, measure: Measure, hinge: Contrastive) -> LossDict:
        if are_too_few(self, lists):
            return self.zero_losses()
        of = listed(measure, call.embeddings, call.ref_emb, lists)
        self.calls["lists"] += 1
        pull = (hinge.positive_margin - of.pos_similarity).clamp(min=0)
        push = (of.neg_similarity - hinge.negative_margin).clamp(min=0)
        return {
            "pos_loss": singles(pull, (of.anchors, of.positives), "pos_pair"),
            "neg_loss": singles(push, (of.others, of.negatives), "neg_pair"),
        }


def of_one_kind(
    measure: Measure, hinge: Contrastive, chosen: Chosen, positives: bool
) -> Summed | None:
    """The sum of the hinges of the positives alone, or of the negatives."""
    return of_bounded(measure, hinge_of(hinge, positives), chosen)


def of_bounded(measure: Measure, hinge: Contrastive, chosen: Chosen) -> Summed | None:
    """The sum of the hinges, whose active pairs are those that are kept; None where the pairs are
    mined by others."""
    if not isinstance(chosen.mining, (NoMining, ThresholdMining)):
        return None
    return summed_rows(measure, hinge, active_of(hinge, chosen))


def hinge_of(hinge: Contrastive, positives: bool) -> Contrastive:
    if positives:
        return Contrastive(hinge.positive_margin, FARTHEST)
    return Contrastive(-FARTHEST, hinge.negative_margin)


def active_of(alone: Contrastive, chosen: Chosen) -> Chosen:
    """Of pairs that no other pair bounds those that cost something."""
    pull, push = float(alone.positive_margin), float(alone.negative_margin)
    if isinstance(chosen.mining, ThresholdMining):
        pull = min(pull, chosen.mining.positive_below)
        push = max(push, chosen.mining.negative_above)
    return chosen._replace(mining=ThresholdMining(pull, push))


def one_kind(
    measure: Measure, hinge: Contrastive, chosen: Chosen, positives: bool
) -> tuple[Tensor, Callable[[], Tensor]]:
    """(N,) hinges of the positives alone, or of the negatives, and how many of all are active."""
    alone = hinge_of(hinge, positives)
    pull, push = alone.positive_margin, alone.negative_margin
    if isinstance(chosen.mining, (NoMining, ThresholdMining)):
        losses, stats = row_losses(measure, alone, active_of(alone, chosen))
        return losses, (stats.pos_kept + stats.neg_kept).sum
    losses, _ = row_losses(measure, alone, chosen)

    def active(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        paid = (positive & (similarity < pull)) | (negative & (similarity > push))
        return paid.sum(1).to(similarity.dtype)

    return losses, lambda: counted_rows(measure, active, chosen).sum()


class NTXentLoss(Served, theirs.NTXentLoss):
    """pytorch-metric-learning's, by kernels: each positive pair against the negatives of its
    anchor, without the saturation of theirs."""

    def losses_of(self, call: Call, measure: Measure) -> LossDict:
        rule = rule_of(NTXent, temperature=self.temperature)
        chosen = choose(call, measure)
        if not isinstance(chosen, Chosen):
            return self._of_lists(as_pairs(chosen), call, measure)
        if option := unserved_reducer(self, ("loss",), ("mean", "sum", "active", "anchors")):
            raise Unserved(option)
        losses, stats = row_losses(measure, rule, chosen)
        self.calls["kernels"] += 1
        if chosen.mined is not None:
            chosen.mined.keep_counts(stats.pos_kept, stats.neg_kept)
        both = stats.pos_kept.sum(), stats.neg_kept.sum()
        losses = unless_too_few(self, losses, *both)

        def active(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
            logits = similarity / self.temperature
            z = masked_log_sum_exp(logits, negative)[:, None] - logits
            # Below it a loss is lost against 1, of which theirs is the logarithm.
            least = math.log(torch.finfo(z.dtype).eps / 2)
            return (positive & (z > least)).sum(1).to(z.dtype)

        totals = Totals(
            (losses * stats.pos_kept).sum(),
            stats.pos_kept.sum,
            lambda: counted_rows(measure, active, chosen).sum(),
            losses,
        )
        return {"loss": reduced(self, "loss", totals)}

    def _of_lists(self, lists: Lists, call: Call, measure: Measure) -> LossDict:
        anchors, positives, others, _ = lists
        if are_too_few(self, lists) or len(anchors) == 0 or len(others) == 0:
            return self.zero_losses()
        of = listed(measure, call.embeddings, call.ref_emb, lists)
        self.calls["lists"] += 1
        total = rows_of_lists(lambda s, p, n: masked_log_sum_exp(s / self.temperature, n), of)
        total = total.masked_fill(torch.bincount(of.others, minlength=of.n) == 0, -math.inf)
        z = total[of.anchors] - of.pos_similarity / self.temperature
        return {"loss": singles(softplus(z, threshold=FAR), (of.anchors, of.positives), "pos_pair")}
