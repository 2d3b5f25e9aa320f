"""What the kernels are told of a pair of rules: a row a rule.

Names of forms are those of `forms.py`, those of rules the RULE of `weighting_rules.py` and the
MINING of `mining_rules.py`.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from ms_kernels.rules.mining import (
    HardestMining,
    Mining,
    MultiSimilarityMining,
    NoMining,
    SemiHardMining,
    ThresholdMining,
    TopKMining,
)
from ms_kernels.rules.spec import PairSpec
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


class Coefficients(NamedTuple):
    """Numbers of both rules; `coefficients.py` says how kernels read them."""

    positive_scale: float = 1.0
    positive_base: float = 0.0
    negative_scale: float = 1.0
    negative_base: float = 0.0
    margin: float = 0.0
    max_positive_similarity: float = math.inf
    mining_slack: float = 0.0
    mining_positive_below: float = 0.0
    mining_negative_above: float = 0.0
    least_rounded: float = 1.0


class Rule(NamedTuple):
    """A weighting rule."""

    name: str
    negative: str  # form of the negatives
    positive: str  # form of the positives
    sign: int  # of positives: -1 where less similar ones are the harder
    numbers: Callable[[Any], Coefficients]
    has_offset: bool = False  # the positives' sigmoid depends on the anchor's negatives
    counts: bool = True  # `finish` looks at the numbers of kept pairs
    moment: bool = False  # and at the moment
    # The weights of an anchor's negatives, and those of its positives, sum to less than 1: so
    # float16 can hold them.
    shares: bool = False

    @property
    def log_sum(self) -> bool:
        """Whether the sum of the negatives is a log-sum-exp."""
        return self.negative in ("exponential", "circle")


class MiningRule(NamedTuple):
    """A mining rule."""

    name: str
    numbers: Callable[[Any], dict[str, float]]
    two_sided: bool = False  # kept negatives lie below a bound too
    # Of the hardest negatives, the one that bounds negatives: 1 is the hardest. 0: none does.
    hardest_negatives: Callable[[Any], int] = lambda _: 0
    bounds_positives: bool = False  # bounds of positives hang on the hardest negative


def _scales(rule: Any) -> Coefficients:
    return Coefficients(rule.alpha, rule.base, rule.beta, rule.base)


def _temperature(rule: Any) -> Coefficients:
    return Coefficients(positive_scale=1 / rule.temperature, negative_scale=1 / rule.temperature)


_LOG_SUM = "exponential"
_NT_XENT = Rule("nt_xent", _LOG_SUM, "sigmoid", -1, _temperature, has_offset=True, moment=True)
WEIGHTING_RULES: dict[type[Weighting], Rule] = {
    MultiSimilarity: Rule(
        *("multi_similarity", _LOG_SUM, _LOG_SUM, -1, _scales),
        counts=False,
        shares=True,
    ),
    Contrastive: Rule(
        *("contrastive", "hinge", "hinge", -1),
        lambda rule: Coefficients(
            positive_base=rule.positive_margin, negative_base=rule.negative_margin
        ),
    ),
    BinomialDeviance: Rule("binomial_deviance", "sigmoid", "sigmoid", -1, _scales),
    BinLifted: Rule("bin_lifted", _LOG_SUM, _LOG_SUM, -1, _scales),
    LiftedStructure: Rule(
        *("lifted_structure", _LOG_SUM, _LOG_SUM, -1),
        lambda rule: Coefficients(positive_base=rule.margin),
    ),
    NTXent: _NT_XENT,
    NPair: _NT_XENT,
    SupCon: Rule("sup_con", _LOG_SUM, _LOG_SUM, 1, _temperature, moment=True),
    DecoupledContrastive: Rule(
        *("decoupled_contrastive", _LOG_SUM, _LOG_SUM, 1, _temperature), moment=True
    ),
    NCA: Rule("nca", _LOG_SUM, _LOG_SUM, 1, _temperature),
    Circle: Rule(
        *("circle", "circle", "circle", -1),
        lambda rule: Coefficients(rule.gamma, 1.0, rule.gamma, 0.0, rule.m),
    ),
    SigLIP: Rule(
        *("sig_lip", "sigmoid", "sigmoid", -1),
        lambda rule: Coefficients(
            *(rule.scale, -rule.bias / rule.scale, rule.scale, -rule.bias / rule.scale)
        ),
    ),
    Triplet: Rule("triplet", "ranked", "ranked", -1, lambda rule: Coefficients(margin=rule.margin)),
}
MINING_RULES: dict[type[Mining], MiningRule] = {
    NoMining: MiningRule("none", lambda _: {}),
    MultiSimilarityMining: MiningRule(
        "multi_similarity", lambda rule: {"mining_slack": rule.epsilon}, bounds_positives=True
    ),
    HardestMining: MiningRule("hardest", lambda _: {}, hardest_negatives=lambda _: 1),
    SemiHardMining: MiningRule(
        "semi_hard", lambda rule: {"mining_slack": rule.margin}, two_sided=True
    ),
    ThresholdMining: MiningRule(
        "threshold",
        lambda rule: {
            "mining_positive_below": rule.positive_below,
            "mining_negative_above": rule.negative_above,
        },
    ),
    TopKMining: MiningRule("top_k", lambda _: {}, hardest_negatives=lambda rule: rule.k),
}


def coefficients_of(spec: PairSpec, most: float, weighting: Weighting) -> Coefficients:
    """For a dtype of greatest number `most`: a finite bound of mining stays finite. weighting: that
    of the spec, or the same with tensors for options, of which some coefficients are tensors."""
    numbers = WEIGHTING_RULES[type(weighting)].numbers(weighting)
    bounds = MINING_RULES[type(spec.mining)].numbers(spec.mining)
    cap = spec.max_positive_similarity
    return numbers._replace(
        max_positive_similarity=math.inf if cap is None else cap,
        least_rounded=float(spec.distance is None),
        **{name: max(-most, min(most, bound)) for name, bound in bounds.items()},
    )


def reach_of(scale: float, base: float, count: int) -> float:
    """The greatest exponent of a sum of `count` exp(scale (S - base)) of unit rows, |S| <= 1, or of
    the inverse of its least; 2^17 of them are taken for granted."""
    more = max(0.0, math.log(max(1, count) / 2**17))
    return max(scale * (1 - base) + more, scale * (1 + base))


def is_bounded(spec: PairSpec, count: int, most_exponent: float, known: bool) -> bool:
    """Whether sums over `count` negatives are simply added: see BOUNDED in `forms.py`. known: the
    options are; those of a rule that learns are not."""
    rule = WEIGHTING_RULES[type(spec.weighting)]
    if not rule.log_sum:
        return True
    if not known or not spec.normalize or spec.distance is not None:
        return False
    numbers = rule.numbers(spec.weighting)
    scale, base = numbers.negative_scale, numbers.negative_base
    if rule.negative == "circle":  # from -scale margin^2 to scale (1 - margin^2)
        square = numbers.margin**2
        return reach_of(scale * max(square, 1 - square), 0.0, count) <= most_exponent
    return reach_of(scale, base, count) <= most_exponent
