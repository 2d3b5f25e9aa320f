"""How the pairs of an anchor enter a loss: what is summed over them, and what one of them weighs.
Twin of csrc/rules/form.h.

u is how far the similarity of a pair lies beyond its kind's base: S - base, of positives of SIGN -1
base - S. Of these and of negatives the harder pairs have the greater u.

    FORM         summed over kept pairs      a kept pair weighs           z
    exponential  log sum exp(z)              factor exp(z - offset)       scale u
    circle       log sum exp(z)              factor a exp(z - offset)     a (u - margin),
                                                                a = scale max(0, u + margin)
    sigmoid      sum softplus(z - offset)    factor sigmoid(z - offset)   scale u
    hinge        sum max(0, u)               factor where u >= 0          u
    ranked       see `ranked.py`

A weight is dl/du. BOUNDED says that sums are simply added: they are no exponentials, or such of
unit rows that neither overflow nor underflow; else they refer to the highest pair of their sum
(`height`). HAS_OFFSET: a sigmoid has an offset of its own for each anchor, else none.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.coefficients import margin, negative_base, negative_scale
from ms_kernels.backends.triton.softplus import INFINITY, sigmoid, softplus


@triton.jit
def beyond(sim, base, SIGN: tl.constexpr):
    """u of a pair."""
    if SIGN == 1:
        return sim - base
    else:
        tl.static_assert(SIGN == -1, "a sign is 1 or -1")
        return base - sim


@triton.jit
def circle_factor(u, scale, coefficients):
    """A circle's a."""
    return scale * tl.maximum(u + margin(coefficients), 0)


@triton.jit
def rounded_product(a, b):
    """a b as its type holds it. Exponents cancel: z - offset is 0 for the only pair of a sum, which
    the compiler misses by the rounding of z where it makes one operation of `a * b - offset`. It
    looks through no minimum."""
    z = a * b
    if z.dtype == tl.float64:
        MOST: tl.constexpr = 1.7976931348623157e308
        return tl.minimum(z, tl.full((), MOST, tl.float64))
    else:
        MOST_FLOAT32: tl.constexpr = 3.4028234663852886e38
        return tl.minimum(z, MOST_FLOAT32)


@triton.jit
def exponent(u, scale, coefficients, FORM: tl.constexpr):
    """z, without an offset."""
    if FORM == "circle":
        return rounded_product(circle_factor(u, scale, coefficients), u - margin(coefficients))
    elif FORM == "hinge":
        return u
    else:
        tl.static_assert(FORM == "exponential" or FORM == "sigmoid", "exponent: unknown form")
        return rounded_product(scale, u)


@triton.jit
def below_peak(z, peak):
    """z less the greatest of a sum, at most 0: also of two that overflow."""
    return tl.where(z < peak, z - peak, 0)


@triton.jit
def exp_of(sim, slope, shift):
    """exp(slope sim + shift) in one rounding less than it is written."""
    if sim.dtype == tl.float64:
        return tl.exp(slope * sim + shift)
    else:
        LOG2_E: tl.constexpr = 1.4426950408889634
        return tl.exp2(sim * (slope * LOG2_E) + shift * LOG2_E)


@triton.jit
def log_of_sum(z, hardest, sums):
    """log of a sum of exponentials, exp(z) of the hardest kept pair among them; -inf if empty.
    That pair may be all of the sum: then z itself, not the logarithm of a rounded exponential."""
    lse = tl.log(tl.where(sums == 0, 1, sums))
    return tl.where(sums == 0, -INFINITY, tl.where(sums == hardest, z, lse))


@triton.jit
def log_beyond_peak(z, sums):
    """The same of a sum that refers to the exponential of z; -inf if none is kept."""
    return tl.where(sums == 0, -INFINITY, z + tl.log(tl.where(sums == 0, 1, sums)))


@triton.jit
def unless_too_great(lse):
    """A log-sum-exp; infinite where an exponent was too great for its type, and was cut by
    `rounded_product`."""
    if lse.dtype == tl.float64:
        MOST: tl.constexpr = 1.7976931348623157e308
        return tl.where(lse < tl.full((), MOST, tl.float64), lse, INFINITY)
    else:
        MOST_FLOAT32: tl.constexpr = 3.4028234663852886e38
        return tl.where(lse < MOST_FLOAT32, lse, INFINITY)


@triton.jit
def height(sim, coefficients, FORM: tl.constexpr):
    """What z of a negative rises with: its similarity; of a circle, whose z dips where its factor
    has left 0, z itself."""
    if FORM == "circle":
        u = sim - negative_base(coefficients)
        return exponent(u, negative_scale(coefficients), coefficients, FORM)
    else:
        tl.static_assert(FORM == "exponential", "height: unknown form")
        return sim


@triton.jit
def climb(high, reference, coefficients, CIRCLE: tl.constexpr):
    """z of one height less that of another."""
    if CIRCLE:
        return high - reference
    else:
        return negative_scale(coefficients) * (high - reference)


@triton.jit
def rescaled(sums, reference, other, coefficients, CIRCLE: tl.constexpr):
    """A sum of negatives' exponentials that refers to one height, for another; 0 stays 0, and its
    reference may be -inf."""
    factor = tl.exp(climb(reference, other, coefficients, CIRCLE))
    return tl.where(sums == 0, 0, sums * factor)


@triton.jit
def negative_summand(sim, reference, coefficients, FORM: tl.constexpr, BOUNDED: tl.constexpr):
    """What a kept negative adds to the sum of its anchor; of an exponential that is not BOUNDED
    `sim` is its height, and refers to that of `reference`."""
    scale, u = negative_scale(coefficients), sim - negative_base(coefficients)
    if not BOUNDED:
        return tl.exp(climb(sim, reference, coefficients, FORM == "circle"))
    elif FORM == "exponential":
        return exp_of(sim, scale, -scale * negative_base(coefficients))
    elif FORM == "circle":
        return tl.exp(exponent(u, scale, coefficients, FORM))
    elif FORM == "sigmoid":
        return softplus(scale * u)
    else:
        tl.static_assert(FORM == "hinge", "negative_summand: unknown form")
        return tl.maximum(u, 0)


@triton.jit
def negative_result(peak, sums, coefficients, FORM: tl.constexpr, BOUNDED: tl.constexpr):
    """The finished sum over kept negatives, `peak` the hardest of them, or their greatest height if
    not BOUNDED: a log-sum-exp, -inf if empty, or a plain sum."""
    scale, u = negative_scale(coefficients), peak - negative_base(coefficients)
    if FORM == "exponential" or FORM == "circle":
        if BOUNDED:
            z = exponent(u, scale, coefficients, FORM)
            hardest = negative_summand(peak, peak, coefficients, FORM, BOUNDED)
            return log_of_sum(z, hardest, sums)
        elif FORM == "circle":
            return unless_too_great(log_beyond_peak(peak, sums))
        else:
            return log_beyond_peak(rounded_product(scale, u), sums)
    elif FORM == "sigmoid" or FORM == "hinge":
        return sums
    else:
        tl.static_assert(FORM == "ranked", "negative_result: unknown form")
        return sums


@triton.jit
def in_common(u, scale, FORM: tl.constexpr, HAS_OFFSET: tl.constexpr):
    """What a pair's weights for its row and for its column have in common; u where it is nothing
    that would be computed twice."""
    if FORM == "sigmoid":
        if HAS_OFFSET:
            return u
        else:
            return sigmoid(scale * u)
    else:
        tl.static_assert(
            FORM == "exponential" or FORM == "circle" or FORM == "hinge", "in_common: unknown form"
        )
        return u


@triton.jit
def weight_of(
    u,
    common,
    scale,
    offset,
    factor,
    coefficients,
    FORM: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
):
    """What a kept pair weighs for one side, `common` from `in_common`.

    Exponents of kept pairs are at most 0. Others are cut there, so that what is masked later is
    finite; and a pair that the scan did not count, if rounding let it pass here, must not weigh
    more than any pair can.
    """
    if FORM == "exponential":
        return factor * tl.exp(tl.minimum(rounded_product(scale, u) - offset, 0))
    elif FORM == "circle":
        z = exponent(u, scale, coefficients, FORM)
        a = circle_factor(u, scale, coefficients)
        return factor * a * tl.exp(tl.minimum(z - offset, 0))
    elif FORM == "sigmoid":
        if HAS_OFFSET:
            return factor * sigmoid(rounded_product(scale, u) - offset)
        else:
            return factor * common
    else:
        tl.static_assert(FORM == "hinge", "weight_of: unknown form")
        return tl.where(u >= 0, factor, 0)
