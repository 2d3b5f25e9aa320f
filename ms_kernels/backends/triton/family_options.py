"""What the kernels of the other pair losses are told (`family.py`), from a pair of rules."""

import math

from ms_kernels.rules.mining import MultiSimilarityMining
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import (
    BinLifted,
    BinomialDeviance,
    Circle,
    Contrastive,
    LiftedStructure,
    MultiSimilarity,
    Triplet,
)

OPTIONS = 9


def family_options(spec: PairSpec) -> list[float]:
    """Scale of positives, of negatives, base of negatives, slack of MS mining, else 0,
    max_positive_similarity, base of positives, margin, and 0 twice, which `triplet.py` replaces."""
    rule = spec.weighting
    most = math.inf if spec.max_positive_similarity is None else spec.max_positive_similarity
    margin = 0.0
    if isinstance(rule, (MultiSimilarity, BinLifted, BinomialDeviance)):
        scales, bases = (rule.alpha, rule.beta), (rule.base, rule.base)
    elif isinstance(rule, Contrastive):
        scales, bases = (1.0, 1.0), (rule.positive_margin, rule.negative_margin)
    elif isinstance(rule, LiftedStructure):
        scales, bases = (1.0, 1.0), (rule.margin, 0.0)
    elif isinstance(rule, Circle):
        scales, bases, margin = (rule.gamma, rule.gamma), (1.0, 0.0), rule.m
    elif isinstance(rule, Triplet):
        scales, bases, margin = (1.0, 1.0), (0.0, 0.0), rule.margin
    else:  # those of a temperature
        scale = 1 / rule.temperature  # type: ignore[attr-defined]
        scales, bases = (scale, scale), (0.0, 0.0)
    slack = spec.mining.epsilon if isinstance(spec.mining, MultiSimilarityMining) else 0.0
    return [*scales, bases[1], slack, most, bases[0], margin, 0.0, 0.0]


def reach_of(scale: float, base: float, count: int) -> float:
    """The greatest exponent of a sum of `count` exp(scale (S - base)) of unit rows, |S| <= 1, or of
    the inverse of its least; 2^17 of them are taken for granted."""
    crowd = max(0.0, math.log(max(1, count) / 2**17))
    return max(scale * (1 - base) + crowd, scale * (1 + base))


def is_family_bounded(spec: PairSpec, coefficients: list[float], count: int, bound: float) -> bool:
    """Whether sums of negatives are simply added: see BOUNDED in `family.py`."""
    if isinstance(spec.weighting, (Contrastive, BinomialDeviance, Circle, Triplet)):
        return True
    return spec.normalize and reach_of(coefficients[1], coefficients[2], count) <= bound
