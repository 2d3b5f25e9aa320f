"""The options of a loss: declared here and nowhere else."""

import functools
import math
from dataclasses import dataclass, fields
from typing import Any

from ms_kernels.checks import MOST_OPTION, check_flag, check_number, check_option, take_numbers
from ms_kernels.rules.mining import (
    HardestMining,
    Mining,
    MultiSimilarityMining,
    NoMining,
    SemiHardMining,
    ThresholdMining,
    mining_of,
)
from ms_kernels.rules.weighting import (
    NCA,
    BinLifted,
    BinomialDeviance,
    Circle,
    Contrastive,
    LiftedStructure,
    MultiSimilarity,
    NPair,
    NTXent,
    SupCon,
    Triplet,
    Weighting,
)


@dataclass(frozen=True)
class MultiSimilaritySpec:
    """Options of the Multi-Similarity loss (Wang et al., CVPR 2019, equations 13 to 15).

    alpha, beta: scale of positive and negative similarities, > 0.
    base: similarity at which a pair's exponent is 0.
    epsilon: mining slack in units of similarity; None keeps every pair.
    max_positive_similarity: positives at or above it are no pairs; None keeps them.
    normalize: divide each row by its L2 norm first.
    """

    alpha: float = 2.0
    beta: float = 50.0
    base: float = 0.5
    epsilon: float | None = 0.1
    max_positive_similarity: float | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        take_numbers(self, "alpha", "beta", "base", "epsilon", "max_positive_similarity")
        for name in ("alpha", "beta"):
            check_option(name, getattr(self, name), above_zero=True)
        check_option("base", self.base)
        check_number("epsilon", self.epsilon, optional=True)
        check_shared(self.max_positive_similarity, self.normalize)

    @property
    def weighting(self) -> MultiSimilarity:
        """Its scales and base, as a rule."""
        return MultiSimilarity(self.alpha, self.beta, self.base)

    @property
    def mining(self) -> Mining:
        """Its own mining, as a rule."""
        return mining_of(self.epsilon)

    def by_name(self) -> dict[str, Any]:
        """The options as keywords; torch.compile of torch 2.11 cannot trace vars(spec)."""
        return {name: getattr(self, name) for name in NAMES}

    def pack(self) -> list[float]:
        """The options in the order of their declaration, None as infinity: what an op can take."""
        return [math.inf if v is None else float(v) for v in self.by_name().values()]

    def narrow_epsilon(self, most: float) -> float:
        """epsilon for a dtype of greatest number `most`: finite stays finite, None is infinity."""
        return math.inf if self.epsilon is None else max(-most, min(most, self.epsilon))

    @property
    def known_by(self) -> tuple[str, ...]:
        """The backends whose kernels know it: all."""
        return ("cuda", "cpu", "triton", "panels")

    @staticmethod
    def unpack(packed: list[float]) -> "MultiSimilaritySpec":
        return _unpacked(tuple(packed))


@dataclass(frozen=True, kw_only=True)
class PairOptions:
    """What all losses share; as in `MultiSimilaritySpec`."""

    max_positive_similarity: float | None = None
    normalize: bool = True

    def __post_init__(self) -> None:
        take_numbers(self, "max_positive_similarity")
        check_shared(self.max_positive_similarity, self.normalize)


def check_shared(max_positive_similarity: object, normalize: object) -> None:
    check_number("max_positive_similarity", max_positive_similarity, optional=True)
    check_flag("normalize", normalize)


NAMES = tuple(field.name for field in fields(MultiSimilaritySpec))


@functools.lru_cache(maxsize=64)
def _unpacked(packed: tuple[float, ...]) -> MultiSimilaritySpec:
    values = dict(zip(NAMES, (None if math.isinf(v) else v for v in packed), strict=True))
    return MultiSimilaritySpec(**{**values, "normalize": bool(values["normalize"])})  # type: ignore[arg-type]


# The rules by their codes, which are those of csrc/rules/rules.h as far as that goes.
WEIGHTINGS: tuple[type[Weighting], ...] = (
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
    NPair,
)
MININGS: tuple[type[Mining], ...] = (
    NoMining,
    MultiSimilarityMining,
    HardestMining,
    SemiHardMining,
    ThresholdMining,
)
# What the compiled kernels know, and under which code.
NATIVE_WEIGHTINGS = WEIGHTINGS[: WEIGHTINGS.index(NPair)]
NATIVE = {rule: code for code, rule in enumerate(NATIVE_WEIGHTINGS)}
NATIVE[NPair] = NATIVE[NTXent]
MOST_OPTIONS = 3
# e to this power, 2^23 times, is a float32; so is its inverse.
MOST_EXPONENT = 70


@dataclass(frozen=True)
class PairSpec(PairOptions):
    """A weighting rule with a mining rule, and the options that all of them share."""

    weighting: Weighting
    mining: Mining

    def pack(self) -> list[float]:
        """Codes and options as numbers: what an op can take."""
        most = self.max_positive_similarity
        return [
            *_numbers(self.weighting, WEIGHTINGS),
            *_numbers(self.mining, MININGS),
            math.inf if most is None else float(most),
            float(self.normalize),
        ]

    @property
    def known_by(self) -> tuple[str, ...]:
        """The backends whose kernels know the rules."""
        if type(self.weighting) not in NATIVE or not self.fits_float32:
            return ("panels",)
        cpu = triton = True
        if isinstance(self.weighting, Circle):
            gamma, square = self.weighting.gamma, self.weighting.m**2
            # A circle's exponents dip by so much under that of the hardest pair, which sums refer
            # to on the CPU; the Triton kernels add exponentials as they are.
            cpu = gamma * square <= MOST_EXPONENT
            triton = self.normalize and gamma * max(square, 1 - square) <= MOST_EXPONENT
        return ("cuda", *["cpu"] * cpu, *["triton"] * triton, "panels")

    @property
    def fits_float32(self) -> bool:
        """The kernels take options in the compute dtype, some of them inverted."""
        # torch.compile of torch 2.6 cannot trace vars(rule).
        rules = (self.weighting, self.mining)
        options = [getattr(rule, option.name) for rule in rules for option in fields(rule)]
        return all(not v or 1 / MOST_OPTION <= abs(v) <= MOST_OPTION for v in options)

    @property
    def native_code(self) -> int:
        """The weighting rule's in csrc/rules/rules.h."""
        return NATIVE[type(self.weighting)]

    def native_rules(self) -> tuple[float, ...]:
        """In the order of csrc/rules/rules.h."""
        _, *options = _numbers(self.weighting, WEIGHTINGS)
        mining, *bounds = _numbers(self.mining, MININGS)
        return (self.native_code, *options, mining, *bounds[:2])


def _numbers(rule: Weighting | Mining, known: tuple[type, ...]) -> list[float]:
    values = [float(getattr(rule, field.name)) for field in fields(rule)]
    return [float(known.index(type(rule))), *values, *[0.0] * (MOST_OPTIONS - len(values))]


def unpack(packed: list[float]) -> "Spec":
    """Of either kind of options, told apart by their number."""
    return _unpacked_any(tuple(packed))


@functools.lru_cache(maxsize=64)
def _unpacked_any(packed: tuple[float, ...]) -> "Spec":
    if len(packed) == len(NAMES):
        return MultiSimilaritySpec.unpack(list(packed))
    one = 1 + MOST_OPTIONS
    most = packed[2 * one]
    return PairSpec(
        _rule(packed[:one], WEIGHTINGS),
        _rule(packed[one : 2 * one], MININGS),
        max_positive_similarity=None if math.isinf(most) else most,
        normalize=bool(packed[2 * one + 1]),
    )


Spec = MultiSimilaritySpec | PairSpec
Options = MultiSimilaritySpec | PairOptions


def spec_of(weighting: Weighting, mining: Mining, options: PairOptions) -> Spec | None:
    """What an op can be told of a pair of rules; None of rules that are not of this package.

    The MS loss with its own mining, or with none, has kernels of its own.
    """
    shared = options.max_positive_similarity, options.normalize
    if type(weighting) is MultiSimilarity and type(mining) in (NoMining, MultiSimilarityMining):
        epsilon = mining.epsilon if isinstance(mining, MultiSimilarityMining) else None
        return MultiSimilaritySpec(
            weighting.alpha, weighting.beta, weighting.base, epsilon, *shared
        )
    if type(weighting) in WEIGHTINGS and type(mining) in MININGS:
        cap, normalize = shared
        return PairSpec(weighting, mining, max_positive_similarity=cap, normalize=normalize)
    return None


def _rule(packed: tuple[float, ...], known: tuple[type, ...]) -> Any:
    rule = known[int(packed[0])]
    return rule(*packed[1 : 1 + len(fields(rule))])
