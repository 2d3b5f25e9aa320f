"""What an anchor adds to the weights of its pairs: rows of (8, padded) numbers, by name.

A kept negative lies above NEG_ABOVE and, of a mining rule that is TWO_SIDED, below NEG_BELOW; a
kept positive lies below POS_BELOW. Factors are times the incoming gradient of the anchor's loss;
where exponentials of negatives are simply added (FOLDED), NEG_FACTOR is times exp(-NEG_OFFSET) too,
and a pair weighs it times its exponential. A muted anchor passes no bound. Of a rule with lists
(`ranked.py`) the factors say what one triplet weighs. Kernels write and read only the rows that
their rule has.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.mining_rules import negative_above, negative_below, positive_below
from ms_kernels.backends.triton.softplus import INFINITY
from ms_kernels.backends.triton.weighting_rules import finish

NEG_ABOVE, NEG_BELOW, POS_BELOW = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
NEG_OFFSET, POS_OFFSET = tl.constexpr(3), tl.constexpr(4)
NEG_FACTOR, POS_FACTOR, POS_CONSTANT = tl.constexpr(5), tl.constexpr(6), tl.constexpr(7)
ROWS = 8


@triton.jit
def across(x, AS_ROW: tl.constexpr):
    """A number for each row, or for each column, shaped to broadcast over a tile."""
    return x[:, None] if AS_ROW else x[None, :]


@triton.jit
def term(terms, ROW: tl.constexpr, at, padded, AS_ROW: tl.constexpr):
    """One row of the terms of some anchors, which are the rows of a tile or its columns."""
    return across(tl.load(terms + ROW * padded + at), AS_ROW)


@triton.jit
def times(factor, incoming, muted):
    """What weighs nothing does not become NaN by its incoming gradient."""
    return tl.where(muted | (factor == 0), 0, factor * incoming)


@triton.jit
def write_terms(
    terms,  # (8, padded) out
    at,
    padded,
    hardest_positive,
    hardest_negative,
    neg_offset,
    pos_offset,
    neg_factor,  # factors and the constant times the incoming gradient already
    pos_factor,
    pos_constant,
    muted,
    coefficients,
    SIGN: tl.constexpr,
    MINING: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    FOLDED: tl.constexpr,
):
    if FOLDED:  # an offset of nothing kept may be infinite
        neg_factor = tl.where(neg_factor == 0, 0, neg_factor * tl.exp(-neg_offset))
    above = negative_above(hardest_positive, hardest_negative, coefficients, MINING)
    below = positive_below(hardest_positive, hardest_negative, coefficients, MINING)
    tl.store(terms + NEG_ABOVE * padded + at, tl.where(muted, INFINITY, above))
    tl.store(terms + POS_BELOW * padded + at, tl.where(muted, -INFINITY, below))
    tl.store(terms + NEG_OFFSET * padded + at, tl.where(muted, 0, neg_offset))
    tl.store(terms + POS_OFFSET * padded + at, tl.where(muted, 0, pos_offset))
    tl.store(terms + NEG_FACTOR * padded + at, neg_factor)
    tl.store(terms + POS_FACTOR * padded + at, pos_factor)
    if TWO_SIDED:
        below = negative_below(hardest_positive, MINING)
        tl.store(terms + NEG_BELOW * padded + at, below)
    if SIGN == 1:
        tl.store(terms + POS_CONSTANT * padded + at, pos_constant)


@triton.jit(do_not_specialize=["N"])
def read_terms_kernel(
    hardest_positive,  # (N) statistics and incoming gradient, in the caller's order
    hardest_negative,
    pos_sum,
    neg_sum,
    pos_kept,
    neg_kept,
    pos_moment,
    dloss,
    order,
    coefficients,
    terms,  # (8, padded) out
    N,
    padded,
    RULE: tl.constexpr,
    SIGN: tl.constexpr,
    MINING: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    FOLDED: tl.constexpr,
    COUNTS: tl.constexpr,  # the rule asks for the numbers of kept pairs
    MOMENT: tl.constexpr,  # the rule asks for the moment
    BLOCK: tl.constexpr,  # divides padded
):
    """One program turns the saved statistics of BLOCK rows into terms."""
    T: tl.constexpr = terms.dtype.element_ty
    k = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    present = k < N
    at = tl.load(order + k, mask=present, other=0).to(tl.int64)
    neg = tl.load(neg_sum + at, mask=present, other=0).to(T)
    pos = tl.load(pos_sum + at, mask=present, other=0).to(T)
    muted = (present == 0) | ((neg == neg) == 0)
    positives = tl.zeros((BLOCK,), T)
    negatives = tl.zeros((BLOCK,), T)
    moment = tl.zeros((BLOCK,), T)
    if COUNTS:
        positives = tl.load(pos_kept + at, mask=present, other=0).to(T)
        negatives = tl.load(neg_kept + at, mask=present, other=0).to(T)
    if MOMENT:
        moment = tl.load(pos_moment + at, mask=present, other=0).to(T)
    _, neg_factor, neg_offset, pos_factor, pos_offset, pos_constant = finish(
        pos, neg, moment, positives, negatives, coefficients, RULE
    )
    incoming = tl.load(dloss + at, mask=present, other=0).to(T)
    write_terms(
        terms,
        k,
        padded,
        tl.load(hardest_positive + at, mask=present, other=0).to(T),
        tl.load(hardest_negative + at, mask=present, other=0).to(T),
        neg_offset,
        pos_offset,
        times(neg_factor, incoming, muted),
        times(pos_factor, incoming, muted),
        times(pos_constant, incoming, muted),
        muted,
        coefficients,
        SIGN,
        MINING,
        TWO_SIDED,
        FOLDED,
    )
