"""Weighting rules: what the kept pairs of an anchor cost, and so how much each of them weighs.
The other half of General Pair Weighting (Wang et al., CVPR 2019).

For an anchor with similarities s_p to kept positives P and s_n to kept negatives N each rule is a
loss l; the weight of a pair is |dl/ds|. A rule of your own is a frozen dataclass with the method
`row_loss`, in plain PyTorch. Empty sums are 0, and an anchor without a kept pair costs 0.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ms_kernels.checks import check_option, take_numbers
from ms_kernels.reference import masked_log_sum_exp
from ms_kernels.rules.sums import (
    FAR,
    PairSums,
    RowSums,
    SummedWeighting,
    Weighting,
    log_add_exp,
    masked_sum,
    where_both,
)
from ms_kernels.rules.triplet import Triplet

__all__ = [
    "BinLifted",
    "BinomialDeviance",
    "Circle",
    "Contrastive",
    "DecoupledContrastive",
    "LiftedStructure",
    "MultiSimilarity",
    "NCA",
    "NPair",
    "NTXent",
    "SupCon",
    "Triplet",
    "Weighting",
]


@dataclass(frozen=True)
class MultiSimilarity(SummedWeighting):
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

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        pos_lse = masked_log_sum_exp(-self.alpha * (similarity - self.base), positive)
        return PairSums(pos_lse, masked_log_sum_exp(self.beta * (similarity - self.base), negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        pulled = softplus(sums.positive, threshold=FAR) / self.alpha
        return pulled + softplus(sums.negative, threshold=FAR) / self.beta


@dataclass(frozen=True)
class Contrastive(SummedWeighting):
    """sum_P max(0, positive_margin - s) + sum_N max(0, s - negative_margin).

    Weights: 1 where the hinge is active, else 0. Only positives, or only negatives: that part
    alone. Source: Hadsell et al., CVPR 2006, for similarities as in the paper's equation 4, whose
    positives have no hinge: for unit rows that is positive_margin 1, up to a constant.
    pytorch-metric-learning's ContrastiveLoss with CosineSimilarity and SumReducer is its sum.
    """

    positive_margin: float = 1.0
    negative_margin: float = 0.5
    log_sums = (False, False)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        pulled = (self.positive_margin - similarity).clamp(min=0)
        pushed = (similarity - self.negative_margin).clamp(min=0)
        return PairSums(masked_sum(pulled, positive), masked_sum(pushed, negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        return sums.positive + sums.negative


@dataclass(frozen=True)
class BinomialDeviance(SummedWeighting):
    """sum_P log(1 + exp(alpha (base - s))) / |P| + sum_N log(1 + exp(beta (s - base))) / |N|.

    Weights: alpha sigmoid(alpha (base - s)) / |P| and beta sigmoid(beta (s - base)) / |N|. Only
    positives, or only negatives: that part alone. Source: Yi et al., ICPR 2014; the paper's
    equations 9 and 10. Defaults are those of the MS loss. pytorch-metric-learning has none.
    """

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    above_zero = ("alpha", "beta")
    log_sums = (False, False)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        pulled = softplus(self.alpha * (self.base - similarity), threshold=FAR)
        pushed = softplus(self.beta * (similarity - self.base), threshold=FAR)
        return PairSums(masked_sum(pulled, positive), masked_sum(pushed, negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        pulled = sums.positive / sums.pos_kept.clamp(min=1)
        return pulled + sums.negative / sums.neg_kept.clamp(min=1)


@dataclass(frozen=True)
class BinLifted(SummedWeighting):
    """log(1 + sum_P exp(alpha (base - s)))  + log(1 + sum_N exp(beta (s - base))).

    The binomial deviance of a log-sum-exp, as the paper's ablation combines it with the lifted
    structure loss: the MS loss without its 1/alpha and 1/beta. Weights: alpha and beta times those
    of `MultiSimilarity`. Only positives, or only negatives: that part alone.
    """

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    above_zero = ("alpha", "beta")

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        pos_lse = masked_log_sum_exp(-self.alpha * (similarity - self.base), positive)
        return PairSums(pos_lse, masked_log_sum_exp(self.beta * (similarity - self.base), negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        pulled = softplus(sums.positive, threshold=FAR)
        return pulled + softplus(sums.negative, threshold=FAR)


@dataclass(frozen=True)
class LiftedStructure(SummedWeighting):
    """max(0, log sum_P exp(margin - s) + log sum_N exp(s)), the generalised form.

    Weights, where the hinge is active: exp(-s) / sum_P exp(-s), exp(s) / sum_N exp(s). Only
    positives, or only negatives: 0. Source: Oh Song et al., CVPR 2016; the paper's equations 6
    to 8. pytorch-metric-learning's GeneralizedLiftedStructureLoss with CosineSimilarity is its mean
    of anchors with both kinds or none, for margin = pos_margin - neg_margin.
    """

    margin: float = 1.0

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        pos_lse = masked_log_sum_exp(self.margin - similarity, positive)
        return PairSums(pos_lse, masked_log_sum_exp(similarity, negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        return (sums.positive + sums.negative).clamp(min=0)


@dataclass(frozen=True)
class NTXent(SummedWeighting):
    """sum_P log(1 + sum_N exp((s_n - s_p) / temperature)) / |P|: each positive against all
    negatives.

    Weights, with Z = sum_N exp(s_n / T): of a positive Z / (exp(s_p / T) + Z) / (T |P|), of a
    negative exp(s_n / T) sum_P 1 / (exp(s_p / T) + Z) / (T |P|). Only positives, or only negatives:
    0. Source: Sohn, NIPS 2016; Chen et al., SimCLR, ICML 2020. pytorch-metric-learning's
    NTXentLoss is its mean where all anchors have equally many positives.
    """

    temperature: float = 0.07
    above_zero = ("temperature",)
    log_sums = (False, True)
    pos_follows_neg = True

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        logits = similarity / self.temperature
        neg_lse = masked_log_sum_exp(logits, negative)
        z = (neg_lse if neg_sum is None else neg_sum)[:, None] - logits
        moment = masked_sum(z.detach().sigmoid(), positive)
        return PairSums(masked_sum(softplus(z, threshold=FAR), positive), neg_lse, moment)

    def loss_of(self, sums: RowSums) -> Tensor:
        return sums.positive / sums.pos_kept.clamp(min=1)


@dataclass(frozen=True)
class NPair(NTXent):
    """`NTXent` of temperature 1: sum_P log(1 + sum_N exp(s_n - s_p)) / |P|.

    Sohn (NIPS 2016) takes it of rows that are not normalised, with one positive each:
    normalize=False. pytorch-metric-learning's NPairsLoss with normalize_embeddings=False is its
    mean of the first sample of each class, with the second of each as ref_emb.
    """

    temperature: float = 1.0


@dataclass(frozen=True)
class SupCon(SummedWeighting):
    """log sum_{P and N} exp(s / temperature) - sum_P s / (temperature |P|).

    Weights: of a negative its share q = exp(s / T) / sum_{P and N} exp(s / T), over T; of a
    positive (1 / |P| - q) / T, which may be negative. Without positives: 0; without negatives the
    formula with the positives alone. Source: Khosla et al., NeurIPS 2020, L_out.
    pytorch-metric-learning's SupConLoss with MeanReducer is its mean.
    """

    temperature: float = 0.1
    above_zero = ("temperature",)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        logits = similarity / self.temperature
        pos_lse, neg_lse = (masked_log_sum_exp(logits, kept) for kept in (positive, negative))
        return PairSums(pos_lse, neg_lse, masked_sum(similarity, positive))

    def loss_of(self, sums: RowSums) -> Tensor:
        lse = log_add_exp(sums.positive, sums.negative)
        assert sums.moment is not None
        mean = sums.moment / self.temperature / sums.pos_kept.clamp(min=1)
        return torch.where(sums.pos_kept > 0, lse - mean, 0)


@dataclass(frozen=True)
class DecoupledContrastive(SummedWeighting):
    """log sum_N exp(s / temperature) - sum_P s / (temperature |P|): `NTXent` without the positive
    in its own denominator.

    Weights: exp(s / T) / (T sum_N exp(s / T)) of a negative, 1 / (T |P|) of a positive, however
    easy. Only positives, or only negatives: 0. It may be negative. Source: Yeh et al., Decoupled
    Contrastive Learning, ECCV 2022, equation 6. pytorch-metric-learning has none.
    """

    temperature: float = 0.1
    above_zero = ("temperature",)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        logits = similarity / self.temperature
        pos_lse, neg_lse = (masked_log_sum_exp(logits, kept) for kept in (positive, negative))
        return PairSums(pos_lse, neg_lse, masked_sum(similarity, positive))

    def loss_of(self, sums: RowSums) -> Tensor:
        assert sums.moment is not None
        mean = sums.moment / self.temperature / sums.pos_kept.clamp(min=1)
        return where_both(sums.negative - mean, sums)


@dataclass(frozen=True)
class NCA(SummedWeighting):
    """-log(sum_P exp(s / temperature) / sum_{P and N} exp(s / temperature)).

    Weights, with shares q = exp(s / T) over the sum of P and N, and r over the sum of P: q / T of
    a negative, (r - q) / T of a positive. Only positives, or only negatives: 0. Source: Goldberger
    et al., NIPS 2004; on squared distances of unit rows, 2 - 2 s, its scale is 1 / (2 T):
    pytorch-metric-learning's NCALoss with that softmax_scale is its mean if all have positives.
    """

    temperature: float = 0.5
    above_zero = ("temperature",)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        logits = similarity / self.temperature
        return PairSums(*(masked_log_sum_exp(logits, kept) for kept in (positive, negative)))

    def loss_of(self, sums: RowSums) -> Tensor:
        return where_both(softplus(sums.negative - sums.positive, threshold=FAR), sums)


@dataclass(frozen=True)
class Circle(SummedWeighting):
    """log(1 + sum_N exp(gamma a_n (s_n - m)) sum_P exp(-gamma a_p (s_p - (1 - m)))), where
    a_n = max(0, s_n + m) and a_p = max(0, 1 + m - s_p) count as constants.

    Weights: with the shares of a log-sum-exp, gamma a sigmoid(sum of both log-sum-exps). Only
    positives, or only negatives: 0. Source: Sun et al., CVPR 2020, equations 6 to 8.
    pytorch-metric-learning's CircleLoss with MeanReducer is its mean.
    """

    m: float = 0.4
    gamma: float = 80.0
    above_zero = ("gamma",)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        fixed = similarity.detach()
        pull = self.gamma * (1 + self.m - fixed).clamp(min=0)
        push = self.gamma * (fixed + self.m).clamp(min=0)
        pos_lse = masked_log_sum_exp(-pull * (similarity - (1 - self.m)), positive)
        return PairSums(pos_lse, masked_log_sum_exp(push * (similarity - self.m), negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        return where_both(softplus(sums.positive + sums.negative, threshold=FAR), sums)
