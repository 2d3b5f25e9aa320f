"""Scalar mathematics of the Multi-Similarity loss; twin of csrc/rules/multi_similarity.h.

`coefficients` points to alpha, beta, base, epsilon, max_positive_similarity in the compute dtype,
the last two infinite where they are off. BOUNDED says that exp(beta (S - base)) of unit rows
neither overflows nor underflows: sums then need no running maximum.
"""

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def log1p_of_unit(t):
    """log(1 + t) for t in [0, 1], as 2 artanh(t / (2 + t)): log itself is inexact near 1."""
    TERMS: tl.constexpr = 18 if t.dtype == tl.float64 else 9
    s = t / (t + 2)
    square = s * s
    series = tl.full(t.shape, 1 / (2 * TERMS - 1), t.dtype)
    for k in tl.static_range(1, TERMS):
        series = series * square + tl.full(t.shape, 1 / (2 * (TERMS - k) - 1), t.dtype)
    return 2 * s * series


@triton.jit
def softplus(z):
    """log(1 + exp z); 0 for the empty sum, z = -inf."""
    return tl.maximum(z, 0) + log1p_of_unit(tl.exp(-tl.abs(z)))


@triton.jit
def negative_threshold(hardest_positive, coefficients):
    """A negative is kept if S is above this."""
    epsilon = tl.load(coefficients + 3)
    return tl.where(epsilon == INFINITY, -INFINITY, hardest_positive - epsilon)


@triton.jit
def positive_threshold(hardest_negative, coefficients):
    """A positive is kept if S is below this."""
    epsilon = tl.load(coefficients + 3)
    return tl.where(epsilon == INFINITY, INFINITY, hardest_negative + epsilon)


@triton.jit
def is_positive(sim, same_class, coefficients):
    """A pair of one class is a positive below max_positive_similarity."""
    return same_class & (sim < tl.load(coefficients + 4))


@triton.jit
def negative_exponential(sim, reference, coefficients, BOUNDED: tl.constexpr):
    """exp(beta (S - reference)); `reference` is `base` where sums are bounded."""
    beta = tl.load(coefficients + 1)
    if BOUNDED:
        return tl.exp(beta * (sim - tl.load(coefficients + 2)))
    return tl.exp(beta * (sim - reference))


@triton.jit
def log_of_sum(z, sums):
    """log of a sum of exponentials, of the hardest kept pair exp(z), which may be all of it: then z
    itself, which the logarithm of a rounded exponential is not; -inf if none is kept."""
    lse = tl.log(tl.where(sums == 0, 1, sums))
    return tl.where(sums == 0, -INFINITY, tl.where(sums == tl.exp(z), z, lse))


@triton.jit
def negative_lse(hardest, sums, coefficients, BOUNDED: tl.constexpr):
    """log sum exp(beta (S - base)) from the sum of negative_exponential; -inf if none is kept."""
    z = tl.load(coefficients + 1) * (hardest - tl.load(coefficients + 2))
    if BOUNDED:
        return log_of_sum(z, sums)
    return tl.where(sums == 0, -INFINITY, z + tl.log(tl.where(sums == 0, 1, sums)))


@triton.jit
def positive_exponential(sim, hardest, coefficients):
    """exp(-alpha (S - hardest)), at most 1."""
    return tl.exp(tl.load(coefficients) * (hardest - sim))


@triton.jit
def positive_lse(hardest, sums, coefficients):
    lse = tl.load(coefficients) * (tl.load(coefficients + 2) - hardest) + tl.log(
        tl.where(sums == 0, 1, sums)
    )
    return tl.where(sums == 0, -INFINITY, lse)


@triton.jit
def row_loss(pos_offset, neg_offset, coefficients):
    """Loss of an anchor from softplus of its log-sum-exps."""
    return pos_offset / tl.load(coefficients) + neg_offset / tl.load(coefficients + 1)


@triton.jit
def negative_weight(sim, threshold, offset, dloss, coefficients):
    """What one side adds to the weight dloss/dS of a negative pair.

    A kept pair has z <= 0. Others are cut there, so that what is masked later is finite.
    """
    z = tl.load(coefficients + 1) * (sim - tl.load(coefficients + 2)) - offset
    return tl.where(sim > threshold, tl.exp(tl.minimum(z, 0)) * dloss, 0)


@triton.jit
def positive_weight(sim, threshold, offset, dloss, coefficients):
    z = -tl.load(coefficients) * (sim - tl.load(coefficients + 2)) - offset
    return tl.where(sim < threshold, -tl.exp(tl.minimum(z, 0)) * dloss, 0)
