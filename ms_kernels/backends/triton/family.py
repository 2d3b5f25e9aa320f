"""Scalar mathematics of the other pair losses; twin of csrc/rules/weighting.h.

RULES names the loss: 0 is the MS loss with its own mining, which has functions of its own
(`multi_similarity.py`); else 1 + the code of csrc/rules/rules.h, with any mining, whose bounds
come as arrays. `coefficients` points to scale of positives, scale of negatives, base of negatives,
slack of MS mining, max_positive_similarity, base of positives, margin. BOUNDED says that partial
sums are simply added: they are no exponentials, or such that neither overflow nor underflow.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.multi_similarity import (
    log1p_of_unit,
    log_of_sum,
    negative_exponential,
    negative_lse,
    softplus,
)

MULTI_SIMILARITY, CONTRASTIVE, BINOMIAL = tl.constexpr(1), tl.constexpr(2), tl.constexpr(3)
BIN_LIFTED, LIFTED, NT_XENT = tl.constexpr(4), tl.constexpr(5), tl.constexpr(6)
SUP_CON, NCA, CIRCLE = tl.constexpr(7), tl.constexpr(8), tl.constexpr(9)
TRIPLET = tl.constexpr(10)


@triton.jit
def sigmoid(z):
    return 1 / (1 + tl.exp(-z))


@triton.jit
def below_peak(z, peak):
    """z less the greatest of a sum, at most 0: also of two that overflow."""
    return tl.where(z < peak, z - peak, 0)


@triton.jit
def circle(u, coefficients):
    """z = a (u - margin) and a = scale max(0, u + margin)."""
    margin = tl.load(coefficients + 6)
    a = tl.load(coefficients + 1) * tl.maximum(u + margin, 0)
    return a * (u - margin), a


@triton.jit
def negative_term(sim, reference, coefficients, BOUNDED: tl.constexpr, RULES: tl.constexpr):
    """What a kept negative adds to the sum of its anchor."""
    if RULES == CONTRASTIVE:
        return tl.maximum(sim - tl.load(coefficients + 2), 0)
    elif RULES == BINOMIAL:
        return softplus(tl.load(coefficients + 1) * (sim - tl.load(coefficients + 2)))
    elif RULES == CIRCLE:
        z, a = circle(sim, coefficients)
        return tl.exp(z)
    else:
        return negative_exponential(sim, reference, coefficients, BOUNDED)


@triton.jit
def negative_result(hardest, sums, coefficients, BOUNDED: tl.constexpr, RULES: tl.constexpr):
    """The finished sum: a log-sum-exp, -inf if empty, where the terms are exponentials."""
    # Triton 3.2 takes no chain of three.
    if (RULES == CONTRASTIVE or RULES == BINOMIAL) or RULES == TRIPLET:
        return sums
    elif RULES == CIRCLE:
        z, a = circle(hardest, coefficients)
        return log_of_sum(z, sums)
    else:
        return negative_lse(hardest, sums, coefficients, BOUNDED)


@triton.jit
def positive_exponent(sim, coefficients, RULES: tl.constexpr):
    """z of the losses whose positives enter as log sum exp(z)."""
    if RULES == CIRCLE:
        z, a = circle(1 - sim, coefficients)
        return z
    elif RULES == SUP_CON or RULES == NCA:
        return tl.load(coefficients) * sim
    else:
        return tl.load(coefficients) * (tl.load(coefficients + 5) - sim)


@triton.jit
def finish(pos, neg, moment, pos_kept, neg_kept, coefficients, RULES: tl.constexpr):
    """Loss of an anchor, then coefficient and offset of its negatives, of its positives, and the
    constant of its positives: a kept pair weighs coefficient exp(z - offset) + constant, or as
    `negative_weight` says.

    moment: sum of the kept positives' similarities (SupCon) or sigmoids (NTXent).
    """
    zero = tl.zeros(pos.shape, pos.dtype)
    each = zero + tl.load(coefficients)  # 1 / temperature where there is one
    many = tl.maximum(pos_kept, 1)
    some_pos, some_neg = pos_kept > 0, neg_kept > 0
    both = some_pos & some_neg
    p = tl.where(some_pos, pos, 0)
    n = tl.where(some_neg, neg, 0)
    # As for both kinds; where one is missing the results are selected away.
    joined = tl.maximum(p, n) + log1p_of_unit(tl.exp(-tl.abs(p - n)))
    lse = tl.where(both, joined, tl.where(some_pos, p, n))
    # Without kept pairs of a kind its factor is 0: an incoming NaN stays with those who have some.
    one_pos, one_neg = tl.where(some_pos, zero + 1, 0), tl.where(some_neg, zero + 1, 0)
    if RULES == CONTRASTIVE:
        return pos + neg, one_neg, zero, one_pos, zero, zero
    elif RULES == BINOMIAL:
        count = tl.maximum(neg_kept, 1)
        loss = pos / many + neg / count
        return (
            loss,
            one_neg * tl.load(coefficients + 1) / count,
            zero,
            one_pos * each / many,
            zero,
            zero,
        )
    elif RULES == MULTI_SIMILARITY:
        pos_offset, neg_offset = softplus(pos), softplus(neg)
        loss = pos_offset / each + neg_offset / tl.load(coefficients + 1)
        return loss, one_neg, neg_offset, one_pos, pos_offset, zero
    elif RULES == BIN_LIFTED:
        pos_offset, neg_offset = softplus(pos), softplus(neg)
        loss = pos_offset + neg_offset
        return (
            loss,
            one_neg * tl.load(coefficients + 1),
            neg_offset,
            one_pos * each,
            pos_offset,
            zero,
        )
    elif RULES == LIFTED:
        active = both & (p + n >= 0)
        weight = tl.where(active, 1, zero)
        return tl.where(active, p + n, 0), weight, n, weight, p, zero
    elif RULES == NT_XENT:
        weight = tl.where(both, each / many, 0)
        return pos / many, moment * weight, n, weight, -n, zero
    elif RULES == SUP_CON:
        weight = tl.where(some_pos, each, 0)
        loss = tl.where(some_pos, lse - moment * each / many, 0)
        return loss, weight * one_neg, lse, weight, lse, -weight / many
    elif RULES == NCA:
        weight = tl.where(both, each, 0)
        loss = tl.where(both, softplus(n - p), 0)
        return loss, weight, lse, -weight, p + softplus(p - n), zero
    elif RULES == TRIPLET:
        weight = tl.where(both, zero + 1, 0)
        return neg, weight, zero, weight, zero, zero
    else:
        tl.static_assert(RULES == CIRCLE)
        weight = tl.where(both, zero + 1, 0)
        share = softplus(-(p + n))
        return tl.where(both, softplus(p + n), 0), weight, n + share, weight, p + share, zero


@triton.jit
def negative_weight(sim, offset, factor, coefficients, RULES: tl.constexpr):
    """dl/dS of a kept negative. Exponents of kept pairs are at most 0: others are cut there, so
    that what is masked later is finite."""
    if RULES == CONTRASTIVE:
        return tl.where(sim >= tl.load(coefficients + 2), factor, 0)
    elif RULES == BINOMIAL:
        return factor * sigmoid(tl.load(coefficients + 1) * (sim - tl.load(coefficients + 2)))
    elif RULES == CIRCLE:
        z, a = circle(sim, coefficients)
        return factor * a * tl.exp(tl.minimum(z - offset, 0))
    else:
        z = tl.load(coefficients + 1) * (sim - tl.load(coefficients + 2)) - offset
        return factor * tl.exp(tl.minimum(z, 0))


@triton.jit
def positive_weight(sim, offset, factor, constant, coefficients, RULES: tl.constexpr):
    """dl/dS of a kept positive."""
    if RULES == CONTRASTIVE:
        return tl.where(sim <= tl.load(coefficients + 5), -factor, 0)
    elif RULES == BINOMIAL or RULES == NT_XENT:
        return -factor * sigmoid(tl.load(coefficients) * (tl.load(coefficients + 5) - sim) - offset)
    elif RULES == CIRCLE:
        z, a = circle(1 - sim, coefficients)
        return -factor * a * tl.exp(tl.minimum(z - offset, 0))
    elif RULES == SUP_CON or RULES == NCA:
        z = tl.load(coefficients) * sim - offset
        return factor * tl.exp(tl.minimum(z, 0)) + constant
    else:
        z = tl.load(coefficients) * (tl.load(coefficients + 5) - sim) - offset
        return -factor * tl.exp(tl.minimum(z, 0))
