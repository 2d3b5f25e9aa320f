"""Mining rules: which pairs of an anchor are kept. One of the two halves of General Pair Weighting.

A rule of your own is a frozen dataclass with the method `keep`.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ms_kernels.checks import check_number, check_options, check_whole, take_numbers
from ms_kernels.reference import hardest

MOST_K = 64


@dataclass(frozen=True)
class Mining:
    """Base of the rules. One of your own, which keeps negatives above an anchor's mean similarity:

    >>> @dataclass(frozen=True)
    ... class AboveMean(Mining):
    ...     def keep(self, similarity, positive, negative):
    ...         mean = similarity.mean(1, keepdim=True)
    ...         return positive, negative & (similarity > mean)
    >>> TripletLoss(mining=AboveMean())(embeddings, labels)
    """

    def keep(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """The kept positives and negatives of some anchors.

        similarity: (rows, M); positive, negative: (rows, M) bool, disjoint; a pair in neither is
        the anchor itself. Called without gradients: the kept sets are constants. Of what it returns
        only pairs of the same kind count.
        """
        raise NotImplementedError(
            f"{type(self).__name__}: define keep(self, similarity, positive, negative)"
        )


def kept_pairs(
    mining: Mining, similarity: Tensor, positive: Tensor, negative: Tensor
) -> tuple[Tensor, Tensor]:
    """What a rule keeps of the pairs given; an error says what a rule of one's own must return."""
    version = version_of(similarity)
    kept = mining.keep(similarity, positive, negative)
    if version_of(similarity) != version:
        raise ValueError(written_into(f"{type(mining).__name__}.keep"))
    if not isinstance(kept, tuple) or len(kept) != 2:
        raise TypeError(_unfit(mining, similarity, type(kept).__name__))
    for mask in kept:
        is_mask = isinstance(mask, Tensor) and mask.dtype == torch.bool
        if not is_mask or mask.shape != similarity.shape:
            got = f"{mask.dtype} {tuple(mask.shape)}" if isinstance(mask, Tensor) else repr(mask)
            raise TypeError(_unfit(mining, similarity, got))
    return kept[0] & positive, kept[1] & negative


def version_of(similarity: Tensor) -> int:
    """How often it was written into; 0 where nothing keeps count, as in inference mode."""
    if torch.compiler.is_compiling() or similarity.is_inference():
        return 0
    return similarity._version


def written_into(name: str) -> str:
    return (
        f"{name}: expected similarity to stay as it is, got one that was written into; use an "
        "operation that returns a new tensor, such as similarity.clamp(min=0) for clamp_"
    )


def _unfit(mining: Mining, similarity: Tensor, got: str) -> str:
    wanted = f"two bool tensors {tuple(similarity.shape)}, kept positives and kept negatives"
    return f"{type(mining).__name__}.keep: expected {wanted}, got {got}"


@dataclass(frozen=True)
class BoundedMining(Mining):
    """Base of this package's rules: an anchor's hardest pairs bound the similarities that it keeps.

    So a backend can tell of any pair whether it is kept, whichever other pairs it has at hand.
    """

    is_base: ClassVar[bool] = True  # no rule itself
    # Pairs as hard as the hardest that `within` is given are kept: rounding decides over a tie.
    keeps_ties: ClassVar[bool] = False
    # Whether the hardest pairs bound anything.
    needs_hardest: ClassVar[bool] = True

    @property
    def hardest_negatives(self) -> int:
        """So many of an anchor's hardest negatives bound what it keeps: the last of them does."""
        return 1

    def hardest(
        self, similarity: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """What `within` is given of anchors that have all their pairs here, (rows, 1) each."""
        return hardest(similarity, positive, negative)

    def within(
        self, similarity: Tensor, hardest_positive: Tensor, hardest_negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Whether a positive, and whether a negative of these similarities (rows, M) is kept.

        hardest_positive, hardest_negative: (rows, 1), infinite without one.
        """
        raise NotImplementedError

    def keep(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        bounds = self.within(similarity, *self.hardest(similarity, positive, negative))
        return positive & bounds[0], negative & bounds[1]


@dataclass(frozen=True)
class NoMining(BoundedMining):
    """Keeps every pair."""

    needs_hardest: ClassVar[bool] = False

    def within(
        self, similarity: Tensor, hardest_positive: Tensor, hardest_negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        every = torch.ones_like(similarity, dtype=torch.bool)
        return every, every

    def keep(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        return positive, negative


NO_MINING = NoMining()


def greatest_negatives(similarity: Tensor, negative: Tensor, count: int) -> Tensor:
    """(rows, count) greatest similarities to negatives, descending; -inf where there are fewer."""
    pushed = similarity.masked_fill(~negative, -torch.inf)
    if similarity.shape[1] < count:
        missing = similarity.new_full((similarity.shape[0], count), -torch.inf)
        pushed = torch.cat([pushed, missing], 1)
    return pushed.topk(count, 1, sorted=True).values


@dataclass(frozen=True)
class MultiSimilarityMining(BoundedMining):
    """Keeps negatives with S > hardest positive - epsilon, positives with S < hardest negative +
    epsilon, both strictly (Wang et al., CVPR 2019, section 3.3).

    Both sets are empty together. An anchor with only positives or only negatives keeps none.

    epsilon: slack in units of similarity; a negative one mines harder pairs only. Default 0.1.
    """

    epsilon: float = 0.1

    def __post_init__(self) -> None:
        take_numbers(self)
        check_number("MultiSimilarityMining.epsilon", self.epsilon)

    def within(
        self, similarity: Tensor, hardest_positive: Tensor, hardest_negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        kept_positive = similarity < hardest_negative + self.epsilon
        return kept_positive, similarity > hardest_positive - self.epsilon


def mining_of(epsilon: float | None) -> MultiSimilarityMining | NoMining:
    """The mining of the Multi-Similarity loss; an epsilon of None keeps every pair."""
    check_number("epsilon", epsilon, optional=True)
    return NO_MINING if epsilon is None else MultiSimilarityMining(epsilon)


@dataclass(frozen=True)
class HardestMining(BoundedMining):
    """Keeps the least similar positive and the most similar negative of an anchor, and pairs that
    tie with them (batch-hard, Hermans et al., 2017).

    An anchor with only positives or only negatives keeps its one hardest pair.
    """

    keeps_ties: ClassVar[bool] = True

    def within(
        self, similarity: Tensor, hardest_positive: Tensor, hardest_negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        return similarity <= hardest_positive, similarity >= hardest_negative


@dataclass(frozen=True)
class TopKMining(BoundedMining):
    """Keeps every positive and the k most similar negatives of an anchor, with those that tie with
    the k-th; all negatives of an anchor with fewer than k.

    An anchor with only positives keeps them, one with only negatives its k hardest.
    `RowStatistics.hardest_negative` is the similarity of the k-th, -inf with fewer than k.

    k: whole, from 1 to 64. Default 10.
    """

    k: int = 10

    keeps_ties: ClassVar[bool] = True

    def __post_init__(self) -> None:
        take_numbers(self)
        if isinstance(self.k, float) and self.k % 1 == 0:  # what an op passes on
            object.__setattr__(self, "k", int(self.k))
        check_whole("TopKMining.k", self.k, MOST_K)

    @property
    def hardest_negatives(self) -> int:
        return self.k

    def hardest(
        self, similarity: Tensor, positive: Tensor, negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        least, _ = hardest(similarity, positive, negative)
        return least, greatest_negatives(similarity, negative, self.k)[:, -1:]

    def within(
        self, similarity: Tensor, hardest_positive: Tensor, hardest_negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        return torch.ones_like(similarity, dtype=torch.bool), similarity >= hardest_negative


@dataclass(frozen=True)
class SemiHardMining(BoundedMining):
    """Keeps every positive, and negatives with hardest positive - margin < S < hardest positive:
    less similar than each positive of the anchor, but by less than the margin (after Schroff et
    al., FaceNet, 2015, for all positives of an anchor at once).

    An anchor with only positives keeps them; one with only negatives keeps none.

    margin: in units of similarity, above 0. Default 0.2.
    """

    margin: float = 0.2

    def __post_init__(self) -> None:
        take_numbers(self)
        check_number("SemiHardMining.margin", self.margin, above=0)

    def within(
        self, similarity: Tensor, hardest_positive: Tensor, hardest_negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        easier = similarity < hardest_positive
        return torch.ones_like(easier), easier & (similarity > hardest_positive - self.margin)


@dataclass(frozen=True)
class ThresholdMining(BoundedMining):
    """Keeps positives with S < positive_below and negatives with S > negative_above, whatever else
    the anchor has. Defaults 0.9 and 0.1, in units of similarity.
    """

    needs_hardest: ClassVar[bool] = False

    positive_below: float = 0.9
    negative_above: float = 0.1

    def __post_init__(self) -> None:
        check_options(self)

    def within(
        self, similarity: Tensor, hardest_positive: Tensor, hardest_negative: Tensor
    ) -> tuple[Tensor, Tensor]:
        return similarity < self.positive_below, similarity > self.negative_above
