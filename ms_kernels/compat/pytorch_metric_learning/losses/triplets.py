"""The triplet loss: of all triplets by kernels, of listed ones from their lists."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor
from torch.nn.functional import softplus

from ms_kernels.compat.pytorch_metric_learning.choosing import Lists, choose, rule_of
from ms_kernels.compat.pytorch_metric_learning.fallible import Unserved
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.mined import MinedTriplets
from ms_kernels.compat.pytorch_metric_learning.pairs import Call, Chosen
from ms_kernels.compat.pytorch_metric_learning.reducing import (
    LossDict,
    Totals,
    reduced,
    singles,
    unserved_reducer,
)
from ms_kernels.compat.pytorch_metric_learning.roads import (
    counted_rows,
    numbers_kept,
    row_losses,
    similarities,
    streamed_rows,
)
from ms_kernels.compat.pytorch_metric_learning.served import Served
from ms_kernels.rules.mining import HardestMining
from ms_kernels.rules.sums import FAR
from ms_kernels.rules.triplet import Triplet


class TripletMarginLoss(Served, theirs.TripletMarginLoss):
    """pytorch-metric-learning's, by kernels: triplets are listed where a miner lists them, where
    some are drawn for each anchor, and never where all count."""

    def losses_of(self, call: Call, measure: Measure) -> LossDict:
        rule = rule_of(Triplet, margin=self.margin)
        if call.indices_tuple is None and self.triplets_per_anchor != "all":
            return self._of_lists(self._drawn(call), call, measure)
        chosen = self._chosen(call, measure)
        if not isinstance(chosen, Chosen):
            triplets = loss_and_miner_utils.convert_to_triplets(chosen, call.labels)
            return self._of_lists(triplets, call, measure)
        if self.swap:
            raise Unserved("swap=True")
        if option := unserved_reducer(self, ("loss",), ("mean", "sum", "active")):
            raise Unserved(option)
        losses, positives, negatives, active = self._of_anchors(measure, rule, chosen)
        count = positives * negatives
        if isinstance(chosen.mining, HardestMining):
            # Of an anchor's triplets that tie each is worth its share of the one that counts.
            losses, count = losses / count.clamp(min=1), count.clamp(max=1)
            active = (losses > 0).sum
        number: Callable[[], Tensor] = count.sum
        if isinstance(chosen.mined, MinedTriplets):
            number = chosen.mined.number
        elif chosen.mined is not None:
            chosen.mined.keep_counts(positives, negatives)
        return {"loss": reduced(self, "loss", Totals(losses.sum(), number, active))}

    def _chosen(self, call: Call, measure: Measure) -> Chosen | Lists:
        mined = call.indices_tuple
        if not isinstance(mined, MinedTriplets):
            return choose(call, measure)
        margin = None if self.smooth_loss else self.margin
        chosen = mined.chosen(call.embeddings, call.ref_emb, measure, margin)
        return tuple(mined) if chosen is None or self.swap else chosen

    def _of_anchors(
        self, measure: Measure, rule: Triplet, chosen: Chosen
    ) -> tuple[Tensor, Tensor, Tensor, Callable[[], Tensor]]:
        """(N,) losses, numbers of positives and of negatives; how many triplets cost something."""
        if self.smooth_loss:
            losses = streamed_rows(measure, lambda s, p, n: smooth(s, p, n, self.margin), chosen)
            positives, negatives = numbers_kept(measure, chosen)
            self.calls["streamed"] += 1
            return losses, positives, negatives, (positives * negatives).sum  # each costs something
        losses, stats = row_losses(measure, rule, chosen)
        self.calls["kernels"] += 1
        # With a margin of 0 a triplet that is just on it, as of equal rows, costs nothing.
        strict = functools.partial(strictly_active, measure, chosen)
        active = stats.pos_moment.double().sum if self.margin else strict
        return losses, stats.pos_kept, stats.neg_kept, active

    def _drawn(self, call: Call) -> Lists:
        if call.labels is None:
            raise ValueError("labels and indices_tuple cannot both be None")
        draw = loss_and_miner_utils.convert_to_triplets
        many: Any = self.triplets_per_anchor
        return draw(None, call.labels, call.ref_labels, t_per_anchor=many)

    def _of_lists(self, triplets: Lists, call: Call, measure: Measure) -> LossDict:
        x, r = call.embeddings, call.ref_emb
        anchors, positives, negatives = (index.to(x.device) for index in triplets)
        if len(anchors) == 0:
            return self.zero_losses()
        # One list, for of many pairs all distances are computed once.
        ends = torch.cat([positives, negatives])
        near, far = similarities(measure, x, r, anchors.repeat(2), ends).chunk(2)
        if self.swap:
            far = torch.maximum(far, similarities(measure, x, r, positives, negatives))
        self.calls["lists"] += 1
        violation = far - near + self.margin
        smoothed = softplus(violation, threshold=FAR) if self.smooth_loss else None
        losses = violation.clamp(min=0) if smoothed is None else smoothed
        return {"loss": singles(losses, (anchors, positives, negatives), "triplet")}


def smooth(similarity: Tensor, positive: Tensor, negative: Tensor, margin: float) -> Tensor:
    """(rows,) sum over the triplets of each anchor of log(1 + exp(s_n - s_p + margin))."""
    most = int(positive.sum(1).max()) if positive.numel() else 0
    near = similarity.masked_fill(~positive, torch.inf).topk(most, 1, largest=False).values
    known = near.isfinite()
    near = torch.where(known, near, 0)
    loss = similarity[:, :0].sum(1)
    for k in range(most):
        kept = negative & known[:, k, None]
        each = softplus(similarity - near[:, k, None] + margin, threshold=FAR)
        loss = loss + torch.where(kept, each, 0).sum(1)
    return loss


def strictly_active(measure: Measure, chosen: Chosen) -> Tensor:
    """() in how many triplets the negative is nearer than the positive."""

    def count(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        near = torch.where(positive, similarity, torch.inf).sort(1).values
        far = torch.where(negative, similarity, -torch.inf).contiguous()
        return torch.searchsorted(near, far).sum(1).to(torch.float64)

    return counted_rows(measure, count, chosen).sum()
