"""What follows for an anchor from the sums over its kept pairs, one function a rule; twin of
csrc/rules/weighting.h. The forms of a rule's pairs are in `rule_table.py`.

Each takes the finished sums of positives and negatives, the moment (over kept positives: of an
exponential form the sum of SIGN S, of a sigmoid that of sigmoid(z - offset)) and how many are kept,
and gives the loss; factor and offset of a negative's weight; those of a positive's; and what is
added to a positive's weight. A kind without kept pairs has factor 0: an incoming gradient that is
not a number stays with the anchors that keep some.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.coefficients import negative_scale, positive_scale
from ms_kernels.backends.triton.softplus import INFINITY, log_add_exp, softplus


@triton.jit
def some(lse):
    """Whether a log-sum-exp is one of kept pairs."""
    return lse > -INFINITY


@triton.jit
def finite(lse):
    """A log-sum-exp, or 0 instead of that of no pairs: what is computed of it is selected away."""
    return tl.where(some(lse), lse, 0)


@triton.jit
def factor_if(kept, factor):
    return tl.where(kept, factor, 0)


@triton.jit
def multi_similarity(pos, neg, coefficients):
    zero = tl.zeros(pos.shape, pos.dtype)
    pos_offset, neg_offset = softplus(pos), softplus(neg)
    loss = pos_offset / positive_scale(coefficients) + neg_offset / negative_scale(coefficients)
    return loss, zero + 1, neg_offset, zero + 1, pos_offset, zero


@triton.jit
def contrastive(pos, neg, pos_kept, neg_kept):
    zero = tl.zeros(pos.shape, pos.dtype)
    one = zero + 1
    return pos + neg, factor_if(neg_kept > 0, one), zero, factor_if(pos_kept > 0, one), zero, zero


@triton.jit
def binomial_deviance(pos, neg, pos_kept, neg_kept, coefficients):
    zero = tl.zeros(pos.shape, pos.dtype)
    many_pos, many_neg = tl.maximum(pos_kept, 1), tl.maximum(neg_kept, 1)
    neg_factor = factor_if(neg_kept > 0, negative_scale(coefficients) / many_neg)
    pos_factor = factor_if(pos_kept > 0, positive_scale(coefficients) / many_pos)
    return pos / many_pos + neg / many_neg, neg_factor, zero, pos_factor, zero, zero


@triton.jit
def sig_lip(pos, neg, pos_kept, neg_kept, coefficients):
    zero = tl.zeros(pos.shape, pos.dtype)
    neg_factor = factor_if(neg_kept > 0, zero + negative_scale(coefficients))
    pos_factor = factor_if(pos_kept > 0, zero + positive_scale(coefficients))
    return pos + neg, neg_factor, zero, pos_factor, zero, zero


@triton.jit
def bin_lifted(pos, neg, coefficients):
    zero = tl.zeros(pos.shape, pos.dtype)
    pos_offset, neg_offset = softplus(pos), softplus(neg)
    neg_factor = factor_if(some(neg), zero + negative_scale(coefficients))
    pos_factor = factor_if(some(pos), zero + positive_scale(coefficients))
    return pos_offset + neg_offset, neg_factor, neg_offset, pos_factor, pos_offset, zero


@triton.jit
def lifted_structure(pos, neg):
    zero = tl.zeros(pos.shape, pos.dtype)
    p, n = finite(pos), finite(neg)
    active = some(pos) & some(neg) & (p + n >= 0)
    factor = factor_if(active, zero + 1)
    return factor_if(active, p + n), factor, n, factor, p, zero


@triton.jit
def nt_xent(pos, neg, moment, pos_kept, coefficients):
    many, n = tl.maximum(pos_kept, 1), finite(neg)
    factor = factor_if((pos_kept > 0) & some(neg), positive_scale(coefficients) / many)
    return pos / many, moment * factor, n, factor, -n, tl.zeros(pos.shape, pos.dtype)


@triton.jit
def sup_con(pos, neg, moment, pos_kept, coefficients):
    zero = tl.zeros(pos.shape, pos.dtype)
    p, n, many = finite(pos), finite(neg), tl.maximum(pos_kept, 1)
    lse = tl.where(some(neg), log_add_exp(p, n), p)
    each = zero + positive_scale(coefficients)
    # The log-sum of all less the mean would lose a small loss; that of the positives is no less.
    apart = p - moment * each / many
    loss = tl.where(some(neg), softplus(n - p), zero) + tl.where(apart < 0, zero, apart)
    loss = factor_if(some(pos), loss)
    factor = factor_if(some(pos), each)
    return loss, factor_if(some(neg), factor), lse, factor, lse, -factor / many


@triton.jit
def decoupled_contrastive(pos, neg, moment, pos_kept, coefficients):
    zero = tl.zeros(pos.shape, pos.dtype)
    n, both = finite(neg), some(pos) & some(neg)
    each = zero + positive_scale(coefficients)
    pull = each / tl.maximum(pos_kept, 1)
    loss = factor_if(both, n - moment * pull)
    return loss, factor_if(both, each), n, zero, zero, factor_if(both, -pull)


@triton.jit
def nca(pos, neg, coefficients):
    zero = tl.zeros(pos.shape, pos.dtype)
    p, n, both = finite(pos), finite(neg), some(pos) & some(neg)
    factor = factor_if(both, zero + positive_scale(coefficients))
    # exp(-p) less the exp(-lse) of all is exp(-(p + softplus(p - n))).
    return (
        factor_if(both, softplus(n - p)),
        factor,
        log_add_exp(p, n),
        -factor,
        p + softplus(p - n),
        zero,
    )


@triton.jit
def circle(pos, neg):
    zero = tl.zeros(pos.shape, pos.dtype)
    p, n, both = finite(pos), finite(neg), some(pos) & some(neg)
    # Of exponents that overflow nobody knows what their pairs weigh.
    each = tl.where(p + n < INFINITY, zero + 1, float("nan"))
    factor, share = factor_if(both, each), softplus(-(p + n))
    return factor_if(both, softplus(p + n)), factor, n + share, factor, p + share, zero


@triton.jit
def triplet(pos, neg, pos_kept, neg_kept):
    zero = tl.zeros(pos.shape, pos.dtype)
    factor = factor_if((pos_kept > 0) & (neg_kept > 0), zero + 1)
    return neg, factor, zero, factor, zero, zero


@triton.jit
def finish(pos, neg, moment, pos_kept, neg_kept, coefficients, RULE: tl.constexpr):
    """loss, neg_factor, neg_offset, pos_factor, pos_offset, pos_constant."""
    if RULE == "multi_similarity":
        return multi_similarity(pos, neg, coefficients)
    elif RULE == "contrastive":
        return contrastive(pos, neg, pos_kept, neg_kept)
    elif RULE == "binomial_deviance":
        return binomial_deviance(pos, neg, pos_kept, neg_kept, coefficients)
    elif RULE == "sig_lip":
        return sig_lip(pos, neg, pos_kept, neg_kept, coefficients)
    elif RULE == "bin_lifted":
        return bin_lifted(pos, neg, coefficients)
    elif RULE == "lifted_structure":
        return lifted_structure(pos, neg)
    elif RULE == "nt_xent":
        return nt_xent(pos, neg, moment, pos_kept, coefficients)
    elif RULE == "sup_con":
        return sup_con(pos, neg, moment, pos_kept, coefficients)
    elif RULE == "decoupled_contrastive":
        return decoupled_contrastive(pos, neg, moment, pos_kept, coefficients)
    elif RULE == "nca":
        return nca(pos, neg, coefficients)
    elif RULE == "circle":
        return circle(pos, neg)
    else:
        tl.static_assert(RULE == "triplet", "finish: unknown rule")
        return triplet(pos, neg, pos_kept, neg_kept)
