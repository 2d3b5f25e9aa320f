"""Specs, options and rules as a call asks for them, each made and checked once."""

from dataclasses import fields

from ms_kernels.once import once
from ms_kernels.rules.mining import (
    BoundedMining,
    Mining,
    MultiSimilarityMining,
    NoMining,
    mining_of,
)
from ms_kernels.rules.spec import MININGS, WEIGHTINGS, PairOptions, PairSpec, made_spec
from ms_kernels.rules.sums import Option, SummedWeighting
from ms_kernels.rules.weighting import MultiSimilarity, Weighting


def spec_of(weighting: Weighting, mining: Mining, options: PairOptions) -> PairSpec | None:
    """What an op can be told of a pair of rules; None of rules that are not of this package, and of
    one that learns."""
    return None if weighting.learned else _known_spec(weighting, mining, options)


def learned_spec_of(weighting: Weighting, mining: Mining, options: PairOptions) -> PairSpec | None:
    """The same of a rule that learns, whose options go to the op beside the spec: what the spec has
    of those that learn are the rule's defaults."""
    if type(weighting) not in WEIGHTINGS:
        return None
    names = [option.name for option in fields(weighting) if option.name not in weighting.learned]
    numbers = type(weighting)(**{name: getattr(weighting, name) for name in names})
    return _known_spec(numbers, mining, options)


def _known_spec(weighting: Weighting, mining: Mining, options: PairOptions) -> PairSpec | None:
    if not isinstance(weighting, SummedWeighting) or not isinstance(mining, BoundedMining):
        return None
    if type(weighting) not in WEIGHTINGS or type(mining) not in MININGS:
        return None
    shared = options.max_positive_similarity, options.normalize, options.distance
    return made_spec(weighting, mining, *shared)


@once
def options_of(
    max_positive_similarity: float | None, normalize: bool, distance: str | None = None
) -> PairOptions:
    """Checked."""
    return PairOptions(
        max_positive_similarity=max_positive_similarity, normalize=normalize, distance=distance
    )


@once
def multi_similarity_rules(
    alpha: Option, beta: Option, base: Option, epsilon: float | None
) -> tuple[MultiSimilarity, MultiSimilarityMining | NoMining]:
    """Those of the Multi-Similarity loss, checked."""
    return MultiSimilarity(alpha, beta, base), mining_of(epsilon)
