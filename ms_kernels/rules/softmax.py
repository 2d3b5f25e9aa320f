"""Weighting rules whose pairs share one softmax: NT-Xent and its kin, NCA, the circle loss."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ms_kernels.reference import masked_log_sum_exp
from ms_kernels.rules.sums import (
    FAR,
    Option,
    PairSums,
    RowSums,
    SummedWeighting,
    WeightSums,
    by_temperature,
    masked_sum,
    where_both,
)

__all__ = [
    "Circle",
    "DecoupledContrastive",
    "NCA",
    "NPair",
    "NTXent",
    "SupCon",
]


def log_sums_of(exponents: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """Of both kinds."""
    return masked_log_sum_exp(exponents, positive), masked_log_sum_exp(exponents, negative)


@dataclass(frozen=True)
class NTXent(SummedWeighting):
    """sum_P log(1 + sum_N exp((s_n - s_p) / temperature)) / |P|: each positive against all
    negatives.

    Weights, with Z = sum_N exp(s_n / T): of a positive Z / (exp(s_p / T) + Z) / (T |P|), of a
    negative exp(s_n / T) sum_P 1 / (exp(s_p / T) + Z) / (T |P|). Only positives, or only negatives:
    0. Source: Sohn, NIPS 2016; Chen et al., SimCLR, ICML 2020. pytorch-metric-learning's
    NTXentLoss is its mean where all anchors have equally many positives.

    Statistics: pos_moment is the derivative of pos_sum, the sum over P, by neg_sum, log Z.
    """

    temperature: Option = 0.07
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

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        return by_temperature(self.temperature, weights)


@dataclass(frozen=True)
class NPair(NTXent):
    """`NTXent` of temperature 1, if no other is given: sum_P log(1 + sum_N exp(s_n - s_p)) / |P|.

    Sohn (NIPS 2016) takes it of rows that are not normalised, with one positive each:
    normalize=False. pytorch-metric-learning's NPairsLoss with normalize_embeddings=False is its
    mean of the first sample of each class, with the second of each as ref_emb.
    """

    temperature: Option = 1.0


@dataclass(frozen=True)
class SupCon(SummedWeighting):
    """log sum_{P and N} exp(s / temperature) - sum_P s / (temperature |P|).

    Weights: of a negative its share q = exp(s / T) / sum_{P and N} exp(s / T), over T; of a
    positive (1 / |P| - q) / T, which may be negative. Without positives: 0; without negatives the
    formula with the positives alone. Source: Khosla et al., NeurIPS 2020, L_out.
    pytorch-metric-learning's SupConLoss with MeanReducer is its mean.

    Statistics: pos_moment is sum_P s.
    """

    temperature: Option = 0.1
    above_zero = ("temperature",)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        sums = log_sums_of(similarity / self.temperature, positive, negative)
        return PairSums(*sums, masked_sum(similarity, positive))

    def loss_of(self, sums: RowSums) -> Tensor:
        assert sums.moment is not None
        some = sums.pos_kept > 0
        positive = torch.where(some, sums.positive, 0)
        mean = sums.moment / self.temperature / sums.pos_kept.clamp(min=1)
        # The log-sum of all less the mean would lose a small loss.
        above = softplus(sums.negative - positive, threshold=FAR)
        return torch.where(some, above + (positive - mean), 0)

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        return by_temperature(self.temperature, weights)


@dataclass(frozen=True)
class DecoupledContrastive(SummedWeighting):
    """log sum_N exp(s / temperature) - sum_P s / (temperature |P|): `NTXent` without the positive
    in its own denominator.

    Weights: exp(s / T) / (T sum_N exp(s / T)) of a negative, 1 / (T |P|) of a positive, however
    easy. Only positives, or only negatives: 0. It may be negative. Source: Yeh et al., Decoupled
    Contrastive Learning, ECCV 2022, equation 6. pytorch-metric-learning has none.

    Statistics: pos_moment is sum_P s.
    """

    temperature: Option = 0.1
    above_zero = ("temperature",)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        sums = log_sums_of(similarity / self.temperature, positive, negative)
        return PairSums(*sums, masked_sum(similarity, positive))

    def loss_of(self, sums: RowSums) -> Tensor:
        assert sums.moment is not None
        mean = sums.moment / self.temperature / sums.pos_kept.clamp(min=1)
        return where_both(sums.negative - mean, sums)

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        return by_temperature(self.temperature, weights)


@dataclass(frozen=True)
class NCA(SummedWeighting):
    """-log(sum_P exp(s / temperature) / sum_{P and N} exp(s / temperature)).

    Weights, with shares q = exp(s / T) over the sum of P and N, and r over the sum of P: q / T of
    a negative, (r - q) / T of a positive. Only positives, or only negatives: 0. Source: Goldberger
    et al., NIPS 2004; on squared distances of unit rows, 2 - 2 s, its scale is 1 / (2 T):
    pytorch-metric-learning's NCALoss with that softmax_scale is its mean if all have positives.
    """

    temperature: Option = 0.5
    above_zero = ("temperature",)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        return PairSums(*log_sums_of(similarity / self.temperature, positive, negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        return where_both(softplus(sums.negative - sums.positive, threshold=FAR), sums)

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        return by_temperature(self.temperature, weights)


@dataclass(frozen=True)
class Circle(SummedWeighting):
    """log(1 + sum_N exp(gamma a_n (s_n - m)) sum_P exp(-gamma a_p (s_p - (1 - m)))), where
    a_n = max(0, s_n + m) and a_p = max(0, 1 + m - s_p) count as constants.

    Weights: with the shares of a log-sum-exp, gamma a sigmoid(sum of both log-sum-exps). Only
    positives, or only negatives: 0. Source: Sun et al., CVPR 2020, equations 6 to 8.
    pytorch-metric-learning's CircleLoss with MeanReducer is its mean.
    """

    m: Option = 0.4
    gamma: Option = 80.0
    above_zero = ("gamma",)

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        fixed = similarity.detach()
        # Unlike clamp, relu has no derivative where it is 0: what such a pair, which weighs
        # nothing, adds to that of m could not be told from weights.
        pull = self.gamma * (1 + self.m - fixed).relu()
        push = self.gamma * (fixed + self.m).relu()
        pos_lse = masked_log_sum_exp(-pull * (similarity - (1 - self.m)), positive)
        return PairSums(pos_lse, masked_log_sum_exp(push * (similarity - self.m), negative))

    def loss_of(self, sums: RowSums) -> Tensor:
        return where_both(softplus(sums.positive + sums.negative, threshold=FAR), sums)

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        by_exponent = weights.positive + weights.negative
        by_gamma = weights.positive_beyond + weights.negative_beyond
        return -2 * self.gamma * self.m * by_exponent, by_gamma / self.gamma
