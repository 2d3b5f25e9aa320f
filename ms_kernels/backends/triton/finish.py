"""Positive finish: the last look at an anchor, and its statistics, its loss and terms, or both."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.coefficients import positive_base, positive_scale
from ms_kernels.backends.triton.forms import (
    below_peak,
    beyond,
    exponent,
    log_beyond_peak,
    negative_result,
    rounded_product,
    unless_too_great,
)
from ms_kernels.backends.triton.mining_rules import is_positive, positive_below
from ms_kernels.backends.triton.pairs import (
    GIVEN,
    different,
    given,
    paired,
    positive_range,
    same_class,
)
from ms_kernels.backends.triton.similarity import similarity
from ms_kernels.backends.triton.softplus import INFINITY, sigmoid, softplus
from ms_kernels.backends.triton.terms import times, write_terms
from ms_kernels.backends.triton.weighting_rules import finish


@triton.jit(do_not_specialize=["N", "M"])
def finish_kernel(
    x,
    row_scale,
    row_norm,
    row_ids,
    first,
    last,
    order,
    r,
    column_scale,
    column_ids,
    poisoned,  # (1): a candidate is not finite
    coefficients,
    hardest_positive,  # (padded N), as what follows
    hardest_negative,
    neg_peak,  # if PEAK; else the hardest negative is the peak
    negative_sum,
    neg_kept,  # if COUNTED
    dloss,  # (N) incoming gradient of each loss, in the caller's order, if INCOMING; else it is 1
    terms,  # (8, padded N) out if TERMS; see `terms.py`
    out_loss,  # (N) out if TERMS, in the caller's order
    out_valid,  # (N) int64: 1 where an anchor keeps a pair
    out_hardest_positive,  # (N) out if EXACT, as what follows, in the caller's order
    out_hardest_negative,
    out_pos_sum,
    out_neg_sum,
    out_pos_kept,
    out_neg_kept,
    out_pos_moment,
    N,
    M,
    depth,
    padded,
    MODE: tl.constexpr,
    DISTANCE: tl.constexpr,
    ID_MODE: tl.constexpr,
    RULE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    POSITIVE: tl.constexpr,
    SIGN: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    MOMENT: tl.constexpr,
    MINING: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    FOLDED: tl.constexpr,
    BOUNDED: tl.constexpr,
    COUNTED: tl.constexpr,
    PEAK: tl.constexpr,
    EXACT: tl.constexpr,
    TERMS: tl.constexpr,
    INCOMING: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_M anchors: sums over their kept positives, then all that follows."""
    T: tl.constexpr = row_scale.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    present = rows < N
    low, high = positive_range(first, last, rows, N)
    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    if ID_MODE == GIVEN:
        row_last = tl.where(paired(rows, row_ids) < 0, 0, row_last)
    highest, hardest = tl.load(hardest_negative + rows), tl.load(hardest_positive + rows)
    pos_below = positive_below(hardest, highest, coefficients, MINING)
    scale = positive_scale(coefficients)
    offset = tl.zeros((BLOCK_M,), T)
    if HAS_OFFSET:
        offset = -sum_of_negatives(
            negative_sum, neg_peak, highest, rows, coefficients, NEGATIVE, BOUNDED, PEAK
        )
    # Where less similar positives are the harder, the hardest is the greatest exponential.
    KNOWN_PEAK: tl.constexpr = POSITIVE == "exponential" and SIGN == -1
    reference = tl.where(hardest == INFINITY, 0, hardest)
    top = tl.full((BLOCK_M,), -INFINITY, T)
    sums = tl.zeros((BLOCK_M,), T)
    moment = tl.zeros((BLOCK_M,), T)
    count = tl.zeros((BLOCK_M,), tl.int32)
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        sim = similarity(
            x, row_scale, rows, r, column_scale, columns, depth, MODE, DISTANCE, BLOCK_K
        )
        here = columns
        if ID_MODE == GIVEN:
            here = paired(columns, column_ids)
        pair = same_class(row_first, row_last, here)
        pair &= different(rows, columns, row_ids, column_ids, ID_MODE)
        keep = is_positive(sim, pair, coefficients) & (sim < pos_below[:, None])
        u = beyond(sim, positive_base(coefficients), SIGN)
        if KNOWN_PEAK:
            e = tl.exp(scale * beyond(sim, reference[:, None], SIGN))
            sums += tl.sum(tl.where(keep, e, 0), 1)
        elif POSITIVE == "exponential" or POSITIVE == "circle":
            z = tl.where(keep, exponent(u, scale, coefficients, POSITIVE), -INFINITY)
            new = tl.maximum(top, tl.max(z, 1))
            peak = tl.where(new == -INFINITY, 0, new)
            sums *= tl.exp(below_peak(top, peak))
            sums += tl.sum(tl.exp(below_peak(z, peak[:, None])), 1)
            top = new
        elif POSITIVE == "sigmoid":
            z = rounded_product(scale, u) - offset[:, None]
            sums += tl.sum(tl.where(keep, softplus(z), 0), 1)
            if MOMENT:
                moment += tl.sum(tl.where(keep, sigmoid(z), 0), 1)
        elif POSITIVE == "hinge":
            sums += tl.sum(tl.where(keep, tl.maximum(u, 0), 0), 1)
        else:
            tl.static_assert(POSITIVE == "ranked", "finish_kernel: unknown form")
        if POSITIVE == "exponential":
            if MOMENT:
                moment += tl.sum(tl.where(keep, beyond(sim, 0, SIGN), 0), 1)
        count += tl.sum(keep.to(tl.int32), 1)
    if KNOWN_PEAK:
        u = beyond(reference, positive_base(coefficients), SIGN)
        pos = log_beyond_peak(rounded_product(scale, u), sums)
    elif POSITIVE == "exponential":
        pos = log_beyond_peak(tl.where(count > 0, top, 0), sums)
    elif POSITIVE == "circle":
        pos = unless_too_great(log_beyond_peak(tl.where(count > 0, top, 0), sums))
    elif POSITIVE == "sigmoid" or POSITIVE == "hinge":
        pos = sums
    else:
        tl.static_assert(POSITIVE == "ranked", "finish_kernel: unknown form")
        pos = sums  # none: the negatives' sum is that of the triplets

    negative = tl.load(negative_sum + rows)
    broken = (negative == negative) == 0  # a similarity was not finite
    broken |= (tl.load(row_norm + rows) == tl.load(row_norm + rows)) == 0
    broken |= tl.load(poisoned) != 0
    broken &= M > 0
    neg = sum_of_negatives(
        negative_sum, neg_peak, highest, rows, coefficients, NEGATIVE, BOUNDED, PEAK
    )
    negatives = (negative > 0).to(tl.int32)  # 1 stands for some
    if COUNTED:
        negatives = given(neg_kept, rows, COUNTED)
    at = tl.load(order + rows, mask=present, other=0).to(tl.int64)
    nan = float("nan")
    if EXACT:
        tl.store(out_hardest_positive + at, tl.where(broken, nan, hardest), mask=present)
        tl.store(out_hardest_negative + at, tl.where(broken, nan, highest), mask=present)
        tl.store(out_pos_sum + at, tl.where(broken, nan, pos), mask=present)
        tl.store(out_neg_sum + at, tl.where(broken, nan, neg), mask=present)
        tl.store(out_pos_moment + at, tl.where(broken, nan, moment), mask=present)
        tl.store(out_pos_kept + at, tl.where(broken, 0, count).to(tl.int64), mask=present)
        tl.store(out_neg_kept + at, tl.where(broken, 0, negatives).to(tl.int64), mask=present)
    if TERMS:
        loss, neg_factor, neg_offset, pos_factor, pos_offset, pos_constant = finish(
            pos, neg, moment, count.to(T), negatives.to(T), coefficients, RULE
        )
        valid = ((count > 0) | (negatives > 0)) & (broken == 0)
        tl.store(out_loss + at, tl.where(broken, nan, loss), mask=present)
        tl.store(out_valid + at, valid.to(tl.int64), mask=present)
        muted = broken | (present == 0)
        incoming = tl.full((BLOCK_M,), 1, T)
        if INCOMING:
            incoming = tl.load(dloss + at, mask=present, other=0).to(T)
        write_terms(
            terms,
            rows,
            padded,
            hardest,
            highest,
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


@triton.jit
def sum_of_negatives(
    negative_sum,
    neg_peak,
    highest,
    rows,
    coefficients,
    NEGATIVE: tl.constexpr,
    BOUNDED: tl.constexpr,
    PEAK: tl.constexpr,
):
    """The finished sum, as `statistics` gives it."""
    peak = highest
    if PEAK:
        peak = given(neg_peak, rows, PEAK)
    return negative_result(peak, tl.load(negative_sum + rows), coefficients, NEGATIVE, BOUNDED)
