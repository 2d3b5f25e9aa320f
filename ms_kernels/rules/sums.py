"""What a weighting rule is: a loss for each anchor, of a package's own rule by way of sums."""

from dataclasses import dataclass, fields
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor

from ms_kernels.checks import check_options

# Of a weighting rule: a number, or a tensor of shape () that learns.
Option = float | Tensor
# Above it softplus(z) is taken as z: exp(-40) is below the rounding of float64.
FAR = 40
LARGEST_SUM = 16384


@dataclass(frozen=True)
class Weighting:
    """Base of the rules. Every option is a finite number; those in `above_zero` are above 0. It may
    be a tensor of shape () as well, which learns, such as a parameter.

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

    @property
    def learned(self) -> dict[str, Tensor]:
        """The options that are tensors: their derivatives are wanted, their values not known."""
        values = {option.name: getattr(self, option.name) for option in fields(self)}
        return {name: v for name, v in values.items() if isinstance(v, Tensor)}

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """(rows,) losses of some anchors.

        similarity: (rows, M); positive, negative: (rows, M) bool, the kept pairs.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: define row_loss(self, similarity, positive, negative)"
        )


class PairSums(NamedTuple):
    """What the kept pairs of each anchor add up to, (rows,) each."""

    positive: Tensor
    negative: Tensor
    moment: Tensor | None = None  # of positives, where the loss asks for more than their sum


class RowSums(NamedTuple):
    """The same with the numbers of pairs: all that a loss needs to know of an anchor."""

    positive: Tensor
    negative: Tensor
    pos_kept: Tensor
    neg_kept: Tensor
    moment: Tensor | None = None


class WeightSums(NamedTuple):
    """What the weights dl/dS of all kept pairs add up to, times the incoming gradients of their
    anchors, (4,): of positives sum dl/dS and sum (S - base) dl/dS, and the same of negatives. base:
    the one that the rule takes from them, 0 where it has none; SigLIP's is -bias / scale.

    Of `Circle`, with u and a as in csrc/rules/form.h: sum dl/dz where a is not 0, and
    sum (u - m) dl/du.
    """

    positive: Tensor
    positive_beyond: Tensor
    negative: Tensor
    negative_beyond: Tensor


@dataclass(frozen=True)
class SummedWeighting(Weighting):
    """Base of this package's rules: the loss of an anchor follows from sums over its kept pairs.

    So pairs can be seen a block at a time, and what one of them weighs follows from the sums.

    log_sums: whether the sum of the positives, and that of the negatives, is a log-sum-exp.
    pos_follows_neg: the positives' sum depends on the negatives', and its derivative by that is the
        moment.
    What the moment is, where there is one, the rule's docstring says.
    """

    is_base: ClassVar[bool] = True  # no rule itself
    log_sums: ClassVar[tuple[bool, bool]] = (True, True)
    pos_follows_neg: ClassVar[bool] = False

    def row_sums(
        self, similarity: Tensor, positive: Tensor, negative: Tensor, neg_sum: Tensor | None = None
    ) -> PairSums:
        """Sums over the pairs of (rows, M) similarities that are in the masks.

        neg_sum: of all negatives of the anchor, (rows,), if these are only some of its pairs.
        """
        raise NotImplementedError

    def loss_of(self, sums: RowSums) -> Tensor:
        """(rows,) losses; of an anchor without a kept pair 0."""
        raise NotImplementedError

    def option_gradients(
        self, weights: WeightSums, sums: RowSums, dloss: Tensor
    ) -> tuple[Tensor, ...]:
        """The derivative by each option, () each, of the sum of losses times dloss (rows,); the
        options of self are tensors."""
        raise NotImplementedError

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        pos, neg, moment = self.row_sums(similarity, positive, negative)
        return self.loss_of(RowSums(pos, neg, positive.sum(1), negative.sum(1), moment))


def by_temperature(temperature: Option, weights: WeightSums) -> tuple[Tensor]:
    """Of a loss in which every similarity is divided by it."""
    return (-(weights.positive_beyond + weights.negative_beyond) / temperature,)


def by_scales(alpha: Option, beta: Option, weights: WeightSums) -> tuple[Tensor, Tensor, Tensor]:
    """By alpha, beta and base of what is summed of alpha (base - S) over positives and of
    beta (S - base) over negatives: a shift of base is one of all similarities, the other way."""
    return (
        weights.positive_beyond / alpha,
        weights.negative_beyond / beta,
        -(weights.positive + weights.negative),
    )


def total_worth(numbers: Tensor, dloss: Tensor) -> Tensor:
    """Sum of numbers times what each is worth; what is 0, or worth nothing, adds nothing, whatever
    the other is."""
    return total_of(torch.where((numbers == 0) | (dloss == 0), 0, numbers * dloss))


def total_of(numbers: Tensor) -> Tensor:
    """Their sum, to the same bits for every number of threads."""
    # torch shares out a sum of more than 32768 numbers among its threads: never give it as many.
    while numbers.shape[0] > LARGEST_SUM and numbers.device.type == "cpu":
        numbers = torch.stack([part.sum() for part in torch.split(numbers, LARGEST_SUM)])
    return numbers.sum()


def where_both(loss: Tensor, sums: RowSums) -> Tensor:
    """0, without a gradient, for an anchor with only one kind of pair."""
    return torch.where((sums.pos_kept > 0) & (sums.neg_kept > 0), loss, 0)


def masked_sum(values: Tensor, kept: Tensor) -> Tensor:
    return torch.where(kept, values, 0).sum(1)


def log_add_exp(a: Tensor, b: Tensor) -> Tensor:
    """log(exp a + exp b), of which one or both may be -inf; torch's has a NaN gradient there."""
    most, least = torch.maximum(a, b), torch.minimum(a, b)
    gap = torch.where(least.isfinite(), least - most, -torch.inf)
    return most + torch.log1p(gap.exp())
