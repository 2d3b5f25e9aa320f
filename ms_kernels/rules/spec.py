"""A weighting rule with a mining rule and the options that all of them share: what a loss is.

The one place that numbers the rules: an op of PyTorch takes numbers, the kernels take codes.
"""

import functools
import math
from dataclasses import dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ms_kernels.checks import (
    MOST_OPTION,
    check_choice,
    check_flag,
    check_number,
    check_rule,
    take_numbers,
)
from ms_kernels.once import once
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.mining import (
    BoundedMining,
    HardestMining,
    Mining,
    MultiSimilarityMining,
    NoMining,
    SemiHardMining,
    ThresholdMining,
    TopKMining,
)
from ms_kernels.rules.sums import RowSums, SummedWeighting
from ms_kernels.rules.weighting import (
    NCA,
    BinLifted,
    BinomialDeviance,
    Circle,
    Contrastive,
    DecoupledContrastive,
    LiftedStructure,
    MultiSimilarity,
    NPair,
    NTXent,
    SigLIP,
    SupCon,
    Triplet,
    Weighting,
)

# In the order of their codes: a new rule is appended, in both lists and in csrc/rules/rules.h.
WEIGHTINGS: tuple[type[SummedWeighting], ...] = (
    MultiSimilarity,
    Contrastive,
    BinomialDeviance,
    BinLifted,
    LiftedStructure,
    NTXent,
    SupCon,
    NCA,
    Circle,
    Triplet,
    DecoupledContrastive,
    NPair,
    SigLIP,
)
MININGS: tuple[type[BoundedMining], ...] = (
    NoMining,
    MultiSimilarityMining,
    HardestMining,
    SemiHardMining,
    ThresholdMining,
    TopKMining,
)
# In the order of their codes, as csrc/call.h has them.
DISTANCES = (None, "euclidean", "squared_euclidean")
# From what other libraries have by this name.
_WAY_OUT = (
    "; None compares rows by their product, with normalize=True their cosine; classes that take "
    "distance objects are in ms_kernels.compat.pytorch_metric_learning"
)
MOST_OPTIONS = 3
MOST_BOUNDS = 2  # options of a mining rule, as csrc/rules/rules.h has them


def native_of(weightings: tuple[type[SummedWeighting], ...]) -> tuple[type[SummedWeighting], ...]:
    """Those with codes of their own, in the order of csrc/rules/rules.h: NPair is NTXent there."""
    return tuple(rule for rule in weightings if rule is not NPair)


NATIVE_WEIGHTINGS = native_of(WEIGHTINGS)
NATIVE = {rule: code for code, rule in enumerate(NATIVE_WEIGHTINGS)}
NATIVE[NPair] = NATIVE[NTXent]


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What all losses share.

    max_positive_similarity: positives at or above it are no pairs; None keeps them.
    normalize: divide each row by its L2 norm first.
    distance: None, "euclidean" or "squared_euclidean": S is x . y, -|x - y| or -|x - y|^2.
    """

    max_positive_similarity: float | None = None
    normalize: bool = True
    distance: str | None = None

    def __post_init__(self) -> None:
        take_numbers(self, "max_positive_similarity")
        check_number("max_positive_similarity", self.max_positive_similarity, optional=True)
        check_flag("normalize", self.normalize)
        check_choice("distance", self.distance, DISTANCES, _WAY_OUT)


@dataclass(frozen=True)
class PairSpec(PairOptions):
    """A loss of this package. Default: the Multi-Similarity loss with its own mining.

    two_sided: each candidate is an anchor too, and the anchors are its candidates; the loss is
        reduced over both sides. It takes candidates, and a reduction of "mean" or "sum".
    """

    # Factories: torch.compile, up to torch 2.11 at least, takes up the defaults of what a graph
    # makes whether they are used or not, and knows no rule that the graph has not made itself.
    weighting: SummedWeighting = field(default_factory=MultiSimilarity)
    mining: BoundedMining = field(default_factory=MultiSimilarityMining)
    two_sided: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_rule("weighting", self.weighting, SummedWeighting)
        check_rule("mining", self.mining, BoundedMining)
        check_flag("two_sided", self.two_sided)
        if self.weighting.learned:
            raise TypeError(
                f"weighting: expected options that are numbers, got {self.weighting!r}; rules that "
                "learn go to pair_loss or PairLoss"
            )

    def __hash__(self) -> int:
        # Looked up at every call: once is enough to go through the rules.
        found: int | None = vars(self).get("_hash")
        if found is None:
            shared = self.max_positive_similarity, self.normalize, self.distance
            found = hash((self.weighting, self.mining, self.two_sided, *shared))
            object.__setattr__(self, "_hash", found)
        return found

    def __getstate__(self) -> dict[str, object]:
        # In another process None hashes to another number.
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def is_multi_similarity(self) -> bool:
        """The MS loss with its own mining or with none: some kernels have shortcuts for it."""
        own = type(self.mining) in (NoMining, MultiSimilarityMining)
        return own and type(self.weighting) is MultiSimilarity

    @property
    def keeping_nothing(self) -> "PairSpec":
        """Of the same pairs, of which mining keeps none: kernels find the hardest and add up
        nothing."""
        shared = self.max_positive_similarity, self.normalize, self.distance
        nothing = ThresholdMining(-MOST_OPTION, MOST_OPTION)
        return made_spec(self.weighting, nothing, *shared)

    @property
    def names(self) -> str:
        """What was asked for, in a message."""
        return f"{self.weighting!r} with {self.mining!r}"

    def loss_of(self, stats: RowStatistics, weighting: SummedWeighting | None = None) -> Tensor:
        """Loss of each anchor from its statistics, (N,). weighting: the rule with other options."""
        _, _, pos, neg, pos_kept, neg_kept, moment = stats
        rule = self.weighting if weighting is None else weighting
        loss = rule.loss_of(RowSums(pos, neg, pos_kept, neg_kept, moment))
        # An anchor that is not finite keeps nothing, of which many losses make 0.
        return torch.where(neg.isnan(), neg, loss)

    def weighting_of(self, option_values: Tensor) -> SummedWeighting:
        """The weighting rule with options () each, in its order, whose values nobody looks at."""
        return type(self.weighting)(*option_values.unbind())

    def with_numbers(self, option_values: Tensor) -> "PairSpec":
        """With the values of such options, checked; for which a GPU would be waited for."""
        return replace(self, weighting=type(self.weighting)(*option_values.tolist()))

    def pack(self) -> list[float]:
        """Codes and options as numbers, None as infinity: what an op can take."""
        cap = self.max_positive_similarity
        return [
            *_numbers(self.weighting, WEIGHTINGS),
            *_numbers(self.mining, MININGS),
            math.inf if cap is None else float(cap),
            float(self.normalize),
            float(DISTANCES.index(self.distance)),
            float(self.two_sided),
        ]

    def unfit_options(self) -> str | None:
        """None when kernels can take the options in the compute dtype, some of them inverted; those
        of mining they may cut."""
        if self.is_multi_similarity:  # its own checks have seen to that
            return None
        # torch.compile of torch 2.6 cannot trace vars(rule).
        rule = self.weighting
        options = [getattr(rule, option.name) for option in fields(rule)]
        if all(not v or 1 / MOST_OPTION <= abs(v) <= MOST_OPTION for v in options):
            return None
        return f"options must be 0 or between {1 / MOST_OPTION:g} and {MOST_OPTION:g} in size"

    @property
    def native_code(self) -> int:
        """The weighting rule's in csrc/rules/rules.h."""
        return NATIVE[type(self.weighting)]

    def native_rules(self, most: float) -> tuple[float, ...]:
        """In the order of csrc/rules/rules.h, for a dtype of greatest number `most`, in which a
        finite slack of mining stays finite."""
        _, *options = _numbers(self.weighting, WEIGHTINGS)
        mining, *bounds = _numbers(self.mining, MININGS, MOST_BOUNDS)
        return (self.native_code, *options, mining, *(max(-most, min(most, b)) for b in bounds))


def _numbers(
    rule: Weighting | Mining, known: tuple[type, ...], most: int = MOST_OPTIONS
) -> list[float]:
    values = [float(getattr(rule, field.name)) for field in fields(rule)]
    assert len(values) <= most, f"{type(rule).__name__}: expected at most {most} options"
    return [float(known.index(type(rule))), *values, *[0.0] * (most - len(values))]


def unpack(packed: list[float]) -> PairSpec:
    """What `PairSpec.pack` packed."""
    return _unpacked(tuple(packed))


@functools.lru_cache(maxsize=64)
def _unpacked(packed: tuple[float, ...]) -> PairSpec:
    one = 1 + MOST_OPTIONS
    cap = packed[2 * one]
    return PairSpec(
        _rule(packed[:one], WEIGHTINGS),
        _rule(packed[one : 2 * one], MININGS),
        max_positive_similarity=None if math.isinf(cap) else cap,
        normalize=bool(packed[2 * one + 1]),
        distance=DISTANCES[int(packed[2 * one + 2])],
        two_sided=bool(packed[2 * one + 3]),
    )


def _rule(packed: tuple[float, ...], known: tuple[type, ...]) -> Any:
    rule = known[int(packed[0])]
    return rule(*packed[1 : 1 + len(fields(rule))])


@once
def made_spec(
    weighting: SummedWeighting,
    mining: BoundedMining,
    cap: float | None,
    normalize: bool,
    distance: str | None,
) -> PairSpec:
    # By their names: torch.compile, up to torch 2.11 at least, takes the inherited fields for the
    # first arguments.
    return PairSpec(
        weighting=weighting,
        mining=mining,
        max_positive_similarity=cap,
        normalize=normalize,
        distance=distance,
    )
