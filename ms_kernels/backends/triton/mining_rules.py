"""Which pairs an anchor keeps, as strict bounds on S that follow from its hardest pairs; twin of
csrc/rules/mining.h. MINING is a name of `rule_table.py`."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.coefficients import (
    least_rounded,
    max_positive_similarity,
    mining_negative_above,
    mining_positive_below,
    mining_slack,
)
from ms_kernels.backends.triton.softplus import INFINITY


@triton.jit
def is_positive(sim, same_class, coefficients):
    """A pair of one class is a positive below max_positive_similarity."""
    return same_class & (sim < max_positive_similarity(coefficients))


@triton.jit
def beside(sim, coefficients, SIGN: tl.constexpr):
    """A number over sim, or under it, by some rounding errors of a similarity: kernels that divide
    the depth differently need not find the hardest pair at the same bits. So near are ties."""
    SLACK: tl.constexpr = 2.0**-46 if sim.dtype == tl.float64 else 2.0**-19
    # Of 0, as the distance of a copy is, too: the least number that is not flushed.
    TINY: tl.constexpr = 2.0**-1022 if sim.dtype == tl.float64 else 2.0**-126
    slack = SLACK * tl.maximum(tl.abs(sim), least_rounded(coefficients))
    return sim + SIGN * tl.maximum(slack, TINY)


@triton.jit
def negative_above(hardest_positive, hardest_negative, coefficients, MINING: tl.constexpr):
    """A kept negative is above this; its own hardest counts for the mining of the hardest alone."""
    if MINING == "multi_similarity" or MINING == "semi_hard":
        return hardest_positive - mining_slack(coefficients)
    elif MINING == "hardest" or MINING == "top_k":
        return beside(hardest_negative, coefficients, -1)
    elif MINING == "threshold":
        return tl.zeros_like(hardest_positive) + mining_negative_above(coefficients)
    else:
        tl.static_assert(MINING == "none", "negative_above: unknown mining rule")
        return tl.full(hardest_positive.shape, -INFINITY, hardest_positive.dtype)


@triton.jit
def negative_below(hardest_positive, MINING: tl.constexpr):
    """A kept negative is below this, where the rule bounds them from both sides."""
    tl.static_assert(MINING == "semi_hard", "negative_below: the rule has no such bound")
    return hardest_positive


@triton.jit
def positive_below(hardest_positive, hardest_negative, coefficients, MINING: tl.constexpr):
    """A kept positive is below this."""
    if MINING == "multi_similarity":
        return hardest_negative + mining_slack(coefficients)
    elif MINING == "hardest":
        return beside(hardest_positive, coefficients, 1)
    elif MINING == "threshold":
        return tl.zeros_like(hardest_positive) + mining_positive_below(coefficients)
    else:
        tl.static_assert(
            MINING == "none" or MINING == "semi_hard" or MINING == "top_k",
            "positive_below: unknown mining rule",
        )
        return tl.full(hardest_positive.shape, INFINITY, hardest_positive.dtype)
