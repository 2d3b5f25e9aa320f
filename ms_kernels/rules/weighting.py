"""Weighting rules: what the kept pairs of an anchor cost, and so how much each of them weighs.
The other half of General Pair Weighting (Wang et al., CVPR 2019).

For an anchor with similarities s_p to kept positives P and s_n to kept negatives N each rule is a
loss l; the weight of a pair is |dl/ds|. A rule of your own is a frozen dataclass with the method
`row_loss`, in plain PyTorch. Empty sums are 0, and an anchor without a kept pair costs 0.
"""

from dataclasses import dataclass

from torch import Tensor
from torch.nn.functional import softplus

from ms_kernels.checks import check_option, take_numbers
from ms_kernels.reference import masked_log_sum_exp
from ms_kernels.rules import softmax
from ms_kernels.rules.softmax import *  # noqa: F403
from ms_kernels.rules.sums import (
    FAR,
    Option,
    PairSums,
    RowSums,
    SummedWeighting,
    Weighting,
    WeightSums,
    by_scales,
    masked_sum,
    total_worth,
)
from ms_kernels.rules.triplet import Triplet

__all__ = [
    "BinLifted",
    "BinomialDeviance",
    "Contrastive",
    "LiftedStructure",
    "MultiSimilarity",
    "SigLIP",
    "Triplet",
    "Weighting",
]
__all__ += softmax.__all__


@dataclass(frozen=True)
class MultiSimilarity(SummedWeighting):
    """log(1 + sum_P exp(-alpha (s - base))) / alpha + log(1 + sum_N exp(beta (s - base))) / beta.

    Weights: exp(-alpha (s - base)) / (1 + sum_P ...), exp(beta (s - base)) / (1 + sum_N ...).
    Only positives, or only negatives: that part alone. Source: the paper's equations 13 to 15.
    pytorch-metric-learning's MultiSimilarityLoss is its mean as it is.
    """

    alpha: Option = 2.0
    beta: Option = 50.0
    base: Option = 0.5

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

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        alpha, beta, base = by_scales(self.alpha, self.beta, weights)
        # By which the sums are divided besides.
        pulled = total_worth(softplus(sums.positive, threshold=FAR), dloss)
        pushed = total_worth(softplus(sums.negative, threshold=FAR), dloss)
        return alpha - pulled / self.alpha**2, beta - pushed / self.beta**2, base


@dataclass(frozen=True)
class Contrastive(SummedWeighting):
    """sum_P max(0, positive_margin - s) + sum_N max(0, s - negative_margin).

    Weights: 1 where the hinge is active, else 0. Only positives, or only negatives: that part
    alone. Source: Hadsell et al., CVPR 2006, for similarities as in the paper's equation 4, whose
    positives have no hinge: for unit rows that is positive_margin 1, up to a constant.
    pytorch-metric-learning's ContrastiveLoss with CosineSimilarity and SumReducer is its sum.
    """

    positive_margin: Option = 1.0
    negative_margin: Option = 0.5
    log_sums = (False, False)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        pulled = (self.positive_margin - similarity).clamp(min=0)
        pushed = (similarity - self.negative_margin).clamp(min=0)
        return PairSums(masked_sum(pulled, positive), masked_sum(pushed, negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        return sums.positive + sums.negative

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        return -weights.positive, -weights.negative


@dataclass(frozen=True)
class BinomialDeviance(SummedWeighting):
    """sum_P log(1 + exp(alpha (base - s))) / |P| + sum_N log(1 + exp(beta (s - base))) / |N|.

    Weights: alpha sigmoid(alpha (base - s)) / |P| and beta sigmoid(beta (s - base)) / |N|. Only
    positives, or only negatives: that part alone. Source: Yi et al., ICPR 2014; the paper's
    equations 9 and 10. Defaults are those of the MS loss. pytorch-metric-learning has none.
    """

    alpha: Option = 2.0
    beta: Option = 50.0
    base: Option = 0.5
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

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        return by_scales(self.alpha, self.beta, weights)


@dataclass(frozen=True)
class BinLifted(SummedWeighting):
    """log(1 + sum_P exp(alpha (base - s))) + log(1 + sum_N exp(beta (s - base))).

    The binomial deviance of a log-sum-exp, as the paper's ablation combines it with the lifted
    structure loss: the MS loss without its 1/alpha and 1/beta. Weights: alpha and beta times those
    of `MultiSimilarity`. Only positives, or only negatives: that part alone.
    """

    alpha: Option = 2.0
    beta: Option = 50.0
    base: Option = 0.5
    above_zero = ("alpha", "beta")

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        pos_lse = masked_log_sum_exp(-self.alpha * (similarity - self.base), positive)
        return PairSums(pos_lse, masked_log_sum_exp(self.beta * (similarity - self.base), negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        pulled = softplus(sums.positive, threshold=FAR)
        return pulled + softplus(sums.negative, threshold=FAR)

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        return by_scales(self.alpha, self.beta, weights)


@dataclass(frozen=True)
class LiftedStructure(SummedWeighting):
    """max(0, log sum_P exp(margin - s) + log sum_N exp(s)), the generalised form.

    Weights, where the hinge is active: exp(-s) / sum_P exp(-s), exp(s) / sum_N exp(s). Only
    positives, or only negatives: 0. Source: Oh Song et al., CVPR 2016; the paper's equations 6
    to 8. pytorch-metric-learning's GeneralizedLiftedStructureLoss with CosineSimilarity is its mean
    of anchors with both kinds or none, for margin = pos_margin - neg_margin.
    """

    margin: Option = 1.0

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        pos_lse = masked_log_sum_exp(self.margin - similarity, positive)
        return PairSums(pos_lse, masked_log_sum_exp(similarity, negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        return (sums.positive + sums.negative).clamp(min=0)

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        return (-weights.positive,)


@dataclass(frozen=True)
class SigLIP(SummedWeighting):
    """sum_P log(1 + exp(-(scale s + bias))) + sum_N log(1 + exp(scale s + bias)).

    Weights: scale sigmoid(-(scale s + bias)) of a positive, scale sigmoid(scale s + bias) of a
    negative: every pair by itself. Only positives, or only negatives: that part alone. Source: Zhai
    et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, equation 1, which is its mean
    with texts as ref_emb. Defaults are where the paper's training begins; `siglip_loss` learns them
    in the kernels. pytorch-metric-learning has none.
    """

    scale: Option = 10.0
    bias: Option = -10.0
    above_zero = ("scale",)
    log_sums = (False, False)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        z = self.scale * similarity + self.bias
        pulled = masked_sum(softplus(-z, threshold=FAR), positive)
        return PairSums(pulled, masked_sum(softplus(z, threshold=FAR), negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        return sums.positive + sums.negative

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        by_bias = (weights.positive + weights.negative) / self.scale
        beyond = weights.positive_beyond + weights.negative_beyond
        return (beyond - self.bias * by_bias) / self.scale, by_bias
