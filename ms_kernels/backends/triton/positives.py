"""Positive scan: the first of two looks at the few tiles that hold positives.

Negative mining depends on the hardest positive alone, or on the hardest negative; positive mining
on either: so the scan of the negatives (`negatives.py`) stands between this and the positive finish
(`finish.py`).
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.mining_rules import (
    is_positive,
    negative_above,
    negative_below,
    positive_below,
)
from ms_kernels.backends.triton.pairs import GIVEN, different, paired, positive_range, same_class
from ms_kernels.backends.triton.similarity import similarity
from ms_kernels.backends.triton.softplus import INFINITY


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
    neg_above,  # (padded N) out: a kept negative is above, as far as that is known; +inf past N
    neg_below,  # (padded N) out if TWO_SIDED: it is below
    pos_below,  # (padded N) out if LISTED: a kept positive is below, as far as that is known
    N,
    depth,
    MODE: tl.constexpr,
    DISTANCE: tl.constexpr,
    ID_MODE: tl.constexpr,
    MINING: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    LISTED: tl.constexpr,  # positives are, before the negatives are scanned
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_M anchors and visits the columns that hold their positives."""
    T: tl.constexpr = row_scale.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    low, high = positive_range(first, last, rows, N)
    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    if ID_MODE == GIVEN:
        row_last = tl.where(paired(rows, row_ids) < 0, 0, row_last)
    hardest = tl.full((BLOCK_M,), INFINITY, T)
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
        sim = tl.where(is_positive(sim, pair, coefficients), sim, INFINITY)
        hardest = tl.minimum(hardest, tl.min(sim, 1))
    tl.store(hardest_positive + rows, hardest)
    unknown = tl.full((BLOCK_M,), -INFINITY, T)
    above = negative_above(hardest, unknown, coefficients, MINING)
    tl.store(neg_above + rows, tl.where(rows < N, above, INFINITY))
    if TWO_SIDED:
        tl.store(neg_below + rows, negative_below(hardest, MINING))
    if LISTED:
        tl.store(pos_below + rows, positive_below(hardest, unknown, coefficients, MINING))


@triton.jit(do_not_specialize=["N"])
def bounds_kernel(
    hardest_positive,  # (padded N)
    hardest_negative,
    coefficients,
    neg_above,  # (padded N) out; +inf past N
    pos_below,  # (padded N) out if LISTED
    N,
    MINING: tl.constexpr,
    LISTED: tl.constexpr,
    BLOCK: tl.constexpr,  # divides padded N
):
    """One program bounds the pairs of BLOCK anchors whose hardest ones are both known."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    least, most = tl.load(hardest_positive + rows), tl.load(hardest_negative + rows)
    above = negative_above(least, most, coefficients, MINING)
    tl.store(neg_above + rows, tl.where(rows < N, above, INFINITY))
    if LISTED:
        tl.store(pos_below + rows, positive_below(least, most, coefficients, MINING))


@triton.jit(do_not_specialize=["N"])
def known_bounds_kernel(
    known_positive,  # (N) hardest of all candidates, in the caller's order
    known_negative,
    order,
    coefficients,
    hardest_positive,  # (padded N) out, +inf past N
    hardest_negative,  # (padded N) out, -inf past N
    neg_above,  # (padded N) out; +inf past N
    N,
    MINING: tl.constexpr,
    BLOCK: tl.constexpr,  # divides padded N
):
    """The same of anchors whose hardest pairs lie among other candidates too."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = rows < N
    at = tl.load(order + rows, mask=present, other=0).to(tl.int64)
    least = tl.load(known_positive + at, mask=present, other=INFINITY)
    most = tl.load(known_negative + at, mask=present, other=-INFINITY)
    above = negative_above(least, most, coefficients, MINING)
    tl.store(hardest_positive + rows, least)
    tl.store(hardest_negative + rows, most)
    tl.store(neg_above + rows, tl.where(present, above, INFINITY))
