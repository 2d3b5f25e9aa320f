"""The triplet loss: every kept negative of an anchor against every kept positive."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ms_kernels.reference import hardest
from ms_kernels.rules.sums import (
    Option,
    PairSums,
    RowSums,
    SummedWeighting,
    WeightSums,
    total_worth,
)

# So many positives of an anchor are compared with all negatives one by one; more are sorted.
FEW = 8


@dataclass(frozen=True)
class Triplet(SummedWeighting):
    """sum over P and N of max(0, s_n - s_p + margin): all triplets of an anchor.

    Weights: of a negative the number of positives, of a positive the number of negatives, with
    which it violates the margin; a triplet just on it counts. Only positives, or only negatives: 0.
    Triplets are never listed. Source: Schroff et al., CVPR 2015; the paper's equation 5.
    pytorch-metric-learning's TripletMarginLoss with CosineSimilarity and SumReducer is its sum.

    Statistics: neg_sum is the loss, pos_sum 0, pos_moment the number of triplets that violate the
    margin; the sum of the losses divided by theirs is the mean of those that are not 0. In float32
    numbers above 2^24 are rounded.
    """

    margin: Option = 0.1

    log_sums = (False, False)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        loss, number = self._violations(similarity, positive, negative)
        return PairSums(similarity[:, :0].sum(1), loss, number.to(loss.dtype))

    def loss_of(self, sums: RowSums) -> Tensor:
        return sums.negative

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        assert sums.moment is not None  # violations, each as deep as the margin
        return (total_worth(sums.moment, dloss),)

    def _violations(
        self, similarity: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Their sum and their number."""
        # On other devices, and in a graph or a transform, their number is not to be had.
        if similarity.device.type == "cpu" and not is_traced():
            most = int(positive.sum(1).max()) if positive.numel() else 0
            if most <= FEW:
                return self._positive_by_positive(similarity, positive, negative, most)
        return self._sorted(similarity, positive, negative)

    def _positive_by_positive(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, most: int
    ) -> tuple[Tensor, Tensor]:
        pos = similarity.masked_fill(~positive, math.inf).topk(most, 1, largest=False).values
        neg = similarity.masked_fill(~negative, -math.inf)
        loss = similarity[:, :0].sum(1)  # zeros that are connected to the graph
        number = loss.detach().long()
        for k in range(most):
            threshold = pos[:, k, None] - self.margin
            loss = loss + (neg - threshold).clamp(min=0).sum(1)
            number = number + ((neg >= threshold) & negative).sum(1)
        return loss, number

    def _sorted(
        self, similarity: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        # Each negative is worth its distance to the thresholds that it reaches, the first `rank` in
        # ascending order. Sums of distances to the least positive, as of similarities they would
        # cancel.
        least, _ = hardest(similarity.detach(), positive, negative)
        least = torch.where(least.isfinite(), least, 0)
        thresholds = torch.where(positive, similarity - self.margin, math.inf).sort(1).values
        rank = torch.searchsorted(thresholds.detach(), similarity.detach().contiguous(), right=True)
        known = thresholds.detach().isfinite()
        none = similarity.new_zeros(len(similarity), 1)
        totals = torch.cat([none, torch.where(known, thresholds - least, 0).cumsum(1)], 1)
        # A similarity that is not finite, which makes the loss NaN, has no place among them.
        rank = torch.where(negative, rank, 0)
        reached = rank * torch.where(negative, similarity - least, 0)
        return (reached - totals.gather(1, rank)).sum(1), rank.sum(1)


def is_traced() -> bool:
    """Whether values cannot be looked at: in a compiled graph, or in a transform of torch.func."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None
