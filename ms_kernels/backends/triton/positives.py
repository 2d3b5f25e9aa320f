"""Positive scan and positive finish: two looks at the few tiles that hold positives.

Negative mining depends on the hardest positive alone, positive mining on the hardest negative
alone: so the scan of the negatives (`negatives.py`) stands between the two.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.multi_similarity import (
    INFINITY,
    is_positive,
    negative_lse,
    negative_threshold,
    positive_exponential,
    positive_lse,
    positive_threshold,
    row_loss,
    softplus,
)
from ms_kernels.backends.triton.pairs import distinct, positive_range, same_class
from ms_kernels.backends.triton.similarity import similarity


@triton.jit(do_not_specialize=["N"])
def positive_scan_kernel(
    x,
    row_scale,
    row_ids,
    first,
    last,
    r,
    column_scale,
    column_ids,
    coefficients,
    hardest_positive,  # (padded N) out, +inf without a positive
    N,
    depth,
    MODE: tl.constexpr,
    ID_MODE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_M anchors and visits the columns that hold their positives."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    low, high = positive_range(first, last, rows, N)
    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    hardest = tl.full((BLOCK_M,), INFINITY, row_scale.dtype.element_ty)
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        sim = similarity(x, row_scale, rows, r, column_scale, columns, depth, MODE, BLOCK_K)
        pair = same_class(row_first, row_last, columns)
        pair &= distinct(rows, columns, row_ids, column_ids, ID_MODE)
        sim = tl.where(is_positive(sim, pair, coefficients), sim, INFINITY)
        hardest = tl.minimum(hardest, tl.min(sim, 1))
    tl.store(hardest_positive + rows, hardest)


@triton.jit(do_not_specialize=["N", "M"])
def positive_finish_kernel(
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
    hardest_positive,
    hardest_negative,
    negative_sum,
    neg_kept,
    terms,  # (5, padded N) out: thresholds, offsets and dloss of each row; see `weights.py`
    out_hardest_positive,  # (N) out if EXACT, as what follows, in the caller's order
    out_hardest_negative,
    out_pos_lse,
    out_neg_lse,
    out_pos_kept,
    out_neg_kept,
    out_loss,  # (N) out if not EXACT
    out_valid,  # (N) int64: 1 where an anchor keeps a pair
    N,
    M,
    depth,
    padded,
    MODE: tl.constexpr,
    ID_MODE: tl.constexpr,
    BOUNDED: tl.constexpr,
    EXACT: tl.constexpr,
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
    highest, hardest = tl.load(hardest_negative + rows), tl.load(hardest_positive + rows)
    threshold = positive_threshold(highest, coefficients)
    reference = tl.where(hardest == INFINITY, 0, hardest)
    sums = tl.zeros((BLOCK_M,), T)
    count = tl.zeros((BLOCK_M,), tl.int32)
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        sim = similarity(x, row_scale, rows, r, column_scale, columns, depth, MODE, BLOCK_K)
        pair = same_class(row_first, row_last, columns)
        pair &= distinct(rows, columns, row_ids, column_ids, ID_MODE)
        keep = is_positive(sim, pair, coefficients) & (sim < threshold[:, None])
        e = positive_exponential(sim, reference[:, None], coefficients)
        sums += tl.sum(tl.where(keep, e, 0), 1)
        count += tl.sum(keep.to(tl.int32), 1)

    negative = tl.load(negative_sum + rows)
    broken = (negative == negative) == 0  # a similarity was not finite
    broken |= (tl.load(row_norm + rows) == tl.load(row_norm + rows)) == 0
    broken |= tl.load(poisoned) != 0
    broken &= M > 0
    pos_lse = positive_lse(reference, sums, coefficients)
    neg_lse = negative_lse(highest, negative, coefficients, BOUNDED)
    pos_offset, neg_offset = softplus(pos_lse), softplus(neg_lse)
    at = tl.load(order + rows, mask=present, other=0).to(tl.int64)
    nan = float("nan")
    if EXACT:
        tl.store(out_hardest_positive + at, tl.where(broken, nan, hardest), mask=present)
        tl.store(out_hardest_negative + at, tl.where(broken, nan, highest), mask=present)
        tl.store(out_pos_lse + at, tl.where(broken, nan, pos_lse), mask=present)
        tl.store(out_neg_lse + at, tl.where(broken, nan, neg_lse), mask=present)
        negatives = tl.load(neg_kept + rows)
        tl.store(out_pos_kept + at, tl.where(broken, 0, count).to(tl.int64), mask=present)
        tl.store(out_neg_kept + at, tl.where(broken, 0, negatives).to(tl.int64), mask=present)
    else:
        loss = row_loss(pos_offset, neg_offset, coefficients)
        valid = ((count > 0) | (negative > 0)) & (broken == 0)
        tl.store(out_loss + at, tl.where(broken, nan, loss), mask=present)
        tl.store(out_valid + at, valid.to(tl.int64), mask=present)
        muted = broken | (present == 0)
        mined = negative_threshold(hardest, coefficients)
        tl.store(terms + rows, tl.where(muted, INFINITY, mined))
        tl.store(terms + padded + rows, tl.where(muted, -INFINITY, threshold))
        tl.store(terms + 2 * padded + rows, tl.where(muted, 0, neg_offset))
        tl.store(terms + 3 * padded + rows, tl.where(muted, 0, pos_offset))
        tl.store(terms + 4 * padded + rows, tl.where(muted, 0, 1).to(T))
