"""Weighting rules: what the kept pairs of an anchor cost, and so how much each of them weighs.
The other half of General Pair Weighting (Wang et al., CVPR 2019).

For an anchor with similarities s_p to kept positives P and s_n to kept negatives N each rule is a
loss l; the weight of a pair is |dl/ds|. A rule of your own is a frozen dataclass with the method
`row_loss`, in plain PyTorch. Empty sums are 0, and an anchor without a kept pair costs 0.
"""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ms_kernels.checks import check_option, check_options, take_numbers
from ms_kernels.reference import hardest, masked_log_sum_exp

# Above it softplus(z) is taken as z: exp(-40) is below the rounding of float64.
FAR = 40
# So many positives of an anchor are compared with all negatives one by one; more are sorted.
FEW = 8


@dataclass(frozen=True)
class Weighting:
    """Base of the rules. Every option is a finite number; those in `above_zero` are above 0.

    A rule of your own:

    >>> @dataclass(frozen=True)
    ... class Cubic(Weighting):
    ...     scale: float = 2.0
    ...     def row_loss(self, similarity, positive, negative):
    ...         pushed = torch.where(negative, similarity.clamp(min=0) ** 3, 0).sum(1)
    ...         return self.scale * pushed - torch.where(positive, similarity, 0).sum(1)
    >>> PairLoss(Cubic(), MultiSimilarityMining())(embeddings, labels)
    """

    above_zero: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_options(self, self.above_zero)

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(rows,) losses of some anchors.

        similarity: (rows, M); positive, negative: (rows, M) bool, the kept pairs.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: define row_loss(self, similarity, positive, negative)"
        )


@dataclass(frozen=True)
class MultiSimilarity(Weighting):
    """log(1 + sum_P exp(-alpha (s - base))) / alpha + log(1 + sum_N exp(beta (s - base))) / beta.

    Weights: exp(-alpha (s - base)) / (1 + sum_P ...), exp(beta (s - base)) / (1 + sum_N ...).
    Only positives, or only negatives: that part alone. Source: the paper's equations 13 to 15.
    pytorch-metric-learning's MultiSimilarityLoss is its mean as it is.
    """

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5

    def __post_init__(self) -> None:
        # By the names of the arguments of `multi_similarity_loss`.
        take_numbers(self)
        for name in ("alpha", "beta"):
            check_option(name, getattr(self, name), above_zero=True)
        check_option("base", self.base)

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        pos_lse = masked_log_sum_exp(-self.alpha * (similarity - self.base), positive)
        neg_lse = masked_log_sum_exp(self.beta * (similarity - self.base), negative)
        pulled = softplus(pos_lse, threshold=FAR) / self.alpha
        return pulled + softplus(neg_lse, threshold=FAR) / self.beta


@dataclass(frozen=True)
class Contrastive(Weighting):
    """sum_P max(0, positive_margin - s) + sum_N max(0, s - negative_margin).

    Weights: 1 where the hinge is active, else 0. Only positives, or only negatives: that part
    alone. Source: Hadsell et al., CVPR 2006, for similarities as in the paper's equation 4, whose
    positives have no hinge: for unit rows that is positive_margin 1, up to a constant.
    pytorch-metric-learning's ContrastiveLoss with CosineSimilarity and SumReducer is its sum.
    """

    positive_margin: float = 1.0
    negative_margin: float = 0.5

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        pulled = (self.positive_margin - similarity).clamp(min=0)
        pushed = (similarity - self.negative_margin).clamp(min=0)
        return _masked_sum(pulled, positive) + _masked_sum(pushed, negative)


@dataclass(frozen=True)
class BinomialDeviance(Weighting):
    """sum_P log(1 + exp(alpha (base - s))) / |P| + sum_N log(1 + exp(beta (s - base))) / |N|.

    Weights: alpha sigmoid(alpha (base - s)) / |P| and beta sigmoid(beta (s - base)) / |N|. Only
    positives, or only negatives: that part alone. Source: Yi et al., ICPR 2014; the paper's
    equations 9 and 10. Defaults are those of the MS loss. pytorch-metric-learning has none.
    """

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    above_zero = ("alpha", "beta")

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        pulled = softplus(self.alpha * (self.base - similarity), threshold=FAR)
        pushed = softplus(self.beta * (similarity - self.base), threshold=FAR)
        return _masked_mean(pulled, positive) + _masked_mean(pushed, negative)


@dataclass(frozen=True)
class BinLifted(Weighting):
    """log(1 + sum_P exp(alpha (base - s)))  + log(1 + sum_N exp(beta (s - base))).

    The binomial deviance of a log-sum-exp, as the paper's ablation combines it with the lifted
    structure loss: the MS loss without its 1/alpha and 1/beta. Weights: alpha and beta times those
    of `MultiSimilarity`. Only positives, or only negatives: that part alone.
    """

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    above_zero = ("alpha", "beta")

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        pos_lse = masked_log_sum_exp(-self.alpha * (similarity - self.base), positive)
        neg_lse = masked_log_sum_exp(self.beta * (similarity - self.base), negative)
        return softplus(pos_lse, threshold=FAR) + softplus(neg_lse, threshold=FAR)


@dataclass(frozen=True)
class LiftedStructure(Weighting):
    """max(0, log sum_P exp(margin - s) + log sum_N exp(s)), the generalised form.

    Weights, where the hinge is active: exp(-s) / sum_P exp(-s), exp(s) / sum_N exp(s). Only
    positives, or only negatives: 0. Source: Oh Song et al., CVPR 2016; the paper's equations 6
    to 8. pytorch-metric-learning's GeneralizedLiftedStructureLoss with CosineSimilarity is its mean
    of anchors with both kinds or none, for margin = pos_margin - neg_margin.
    """

    margin: float = 1.0

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        pos_lse = masked_log_sum_exp(self.margin - similarity, positive)
        return (pos_lse + masked_log_sum_exp(similarity, negative)).clamp(min=0)


@dataclass(frozen=True)
class Triplet(Weighting):
    """sum over P and N of max(0, s_n - s_p + margin): all triplets of an anchor.

    Weights: of a negative the number of positives, of a positive the number of negatives, with
    which it violates the margin; a triplet just on it counts. Only positives, or only negatives: 0.
    Triplets are never listed. Source: Schroff et al., CVPR 2015; the paper's equation 5.
    pytorch-metric-learning's TripletMarginLoss with CosineSimilarity and SumReducer is its sum.
    """

    margin: float = 0.1

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        # On other devices, and in a graph or a transform, their number is not to be had.
        if similarity.device.type == "cpu" and not is_traced():
            most = int(positive.sum(1).max()) if positive.numel() else 0
            if most <= FEW:
                return self._positive_by_positive(similarity, positive, negative, most)
        return self._sorted(similarity, positive, negative)

    def _positive_by_positive(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, most: int
    ) -> Tensor:
        pos = similarity.masked_fill(~positive, math.inf).topk(most, 1, largest=False).values
        neg = similarity.masked_fill(~negative, -math.inf)
        loss = similarity[:, :0].sum(1)  # zeros that are connected to the graph
        for k in range(most):
            loss = loss + (neg - (pos[:, k, None] - self.margin)).clamp(min=0).sum(1)
        return loss

    def _sorted(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
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
        return (reached - totals.gather(1, rank)).sum(1)


@dataclass(frozen=True)
class NTXent(Weighting):
    """sum_P log(1 + sum_N exp((s_n - s_p) / temperature)) / |P|: each positive against all
    negatives.

    Weights, with Z = sum_N exp(s_n / T): of a positive Z / (exp(s_p / T) + Z) / (T |P|), of a
    negative exp(s_n / T) sum_P 1 / (exp(s_p / T) + Z) / (T |P|). Only positives, or only negatives:
    0. Source: Sohn, NIPS 2016; Chen et al., SimCLR, ICML 2020. pytorch-metric-learning's
    NTXentLoss is its mean where all anchors have equally many positives.
    """

    temperature: float = 0.07
    above_zero = ("temperature",)

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        logits = similarity / self.temperature
        neg_lse = masked_log_sum_exp(logits, negative)
        return _masked_mean(softplus(neg_lse[:, None] - logits, threshold=FAR), positive)


@dataclass(frozen=True)
class NPair(NTXent):
    """`NTXent` of temperature 1: sum_P log(1 + sum_N exp(s_n - s_p)) / |P|.

    Sohn (NIPS 2016) takes it of rows that are not normalised, with one positive each:
    normalize=False. pytorch-metric-learning's NPairsLoss with normalize_embeddings=False is its
    mean of the first sample of each class, with the second of each as ref_emb.
    """

    temperature: float = 1.0


@dataclass(frozen=True)
class SupCon(Weighting):
    """log sum_{P and N} exp(s / temperature) - sum_P s / (temperature |P|).

    Weights: of a negative its share q = exp(s / T) / sum_{P and N} exp(s / T), over T; of a
    positive (1 / |P| - q) / T, which may be negative. Without positives: 0; without negatives the
    formula with the positives alone. Source: Khosla et al., NeurIPS 2020, L_out.
    pytorch-metric-learning's SupConLoss with MeanReducer is its mean.
    """

    temperature: float = 0.1
    above_zero = ("temperature",)

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        logits = similarity / self.temperature
        lse = masked_log_sum_exp(logits, positive | negative)
        return _masked_mean(lse[:, None] - logits, positive)


@dataclass(frozen=True)
class NCA(Weighting):
    """-log(sum_P exp(s / temperature) / sum_{P and N} exp(s / temperature)).

    Weights, with shares q = exp(s / T) over the sum of P and N, and r over the sum of P: q / T of
    a negative, (r - q) / T of a positive. Only positives, or only negatives: 0. Source: Goldberger
    et al., NIPS 2004; on squared distances of unit rows, 2 - 2 s, its scale is 1 / (2 T):
    pytorch-metric-learning's NCALoss with that softmax_scale is its mean if all have positives.
    """

    temperature: float = 0.5
    above_zero = ("temperature",)

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        logits = similarity / self.temperature
        pos_lse, neg_lse = (masked_log_sum_exp(logits, kept) for kept in (positive, negative))
        return _where_both(softplus(neg_lse - pos_lse, threshold=FAR), positive, negative)


@dataclass(frozen=True)
class Circle(Weighting):
    """log(1 + sum_N exp(gamma a_n (s_n - m)) sum_P exp(-gamma a_p (s_p - (1 - m)))), where
    a_n = max(0, s_n + m) and a_p = max(0, 1 + m - s_p) count as constants.

    Weights: with the shares of a log-sum-exp, gamma a sigmoid(sum of both log-sum-exps). Only
    positives, or only negatives: 0. Source: Sun et al., CVPR 2020, equations 6 to 8.
    pytorch-metric-learning's CircleLoss with MeanReducer is its mean.
    """

    m: float = 0.4
    gamma: float = 80.0
    above_zero = ("gamma",)

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        fixed = similarity.detach()
        pull = self.gamma * (1 + self.m - fixed).clamp(min=0)
        push = self.gamma * (fixed + self.m).clamp(min=0)
        pos_lse = masked_log_sum_exp(-pull * (similarity - (1 - self.m)), positive)
        neg_lse = masked_log_sum_exp(push * (similarity - self.m), negative)
        return _where_both(softplus(pos_lse + neg_lse, threshold=FAR), positive, negative)


def is_traced() -> bool:
    """Whether values cannot be looked at: in a compiled graph, or in a transform of torch.func."""
    if torch.compiler.is_compiling():
        return True
    return torch._C._functorch.peek_interpreter_stack() is not None


def _where_both(loss: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    """0, without a gradient, for an anchor with only one kind of pair."""
    return torch.where(positive.any(1) & negative.any(1), loss, 0)


def _masked_sum(values: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, values, 0).sum(1)


def _masked_mean(values: Tensor, kept: Tensor) -> Tensor:
    """Over the kept entries of each row; 0 of none."""
    return _masked_sum(values, kept) / kept.sum(1).clamp(min=1)
