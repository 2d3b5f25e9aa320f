"""Negative scan: the one look at all pairs. `merge.py` sums its partial results."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.forms import height, negative_summand, rescaled
from ms_kernels.backends.triton.pairs import (
    GIVEN,
    different,
    given,
    paired,
    positive_tiles,
    same_class,
)
from ms_kernels.backends.triton.ranked import compare
from ms_kernels.backends.triton.similarity import similarity
from ms_kernels.backends.triton.softplus import INFINITY
from ms_kernels.backends.triton.stash import write_stash


@triton.jit
def max_and_sum(top, total, other_top, other_total):
    return tl.maximum(top, other_top), total + other_total


@triton.jit(do_not_specialize=["first_block", "blocks", "N", "M", "column_blocks", "tiles"])
def negative_scan_kernel(
    x,
    row_scale,
    row_ids,
    first,
    last,
    r,
    column_scale,
    column_ids,
    coefficients,
    neg_above,  # (padded N): a kept negative is above; +inf past N
    neg_below,  # if TWO_SIDED: it is below
    thresholds,  # (ranks, padded N) of ranked negatives, as what follows; see `ranked.py`
    reached,  # out, cleared before
    ranks_in_use,
    row_peak,  # (splits, row_cells) out: partials of this launch's rows
    row_sum,
    row_kept,  # if COUNTED
    row_hardest,  # if PEAK
    column_peak,  # (row blocks of this launch, padded M) out: partials of all columns
    column_sum,
    column_kept,
    column_hardest,
    stash,  # out: exponentials of kept pairs, if STASH; see `stash.py`
    first_block,  # of this launch's row blocks
    blocks,  # row blocks of this launch
    N,
    M,
    depth,
    row_cells,
    column_cells,
    column_blocks,
    tiles,  # blocks of columns of one program
    padded,
    MODE: tl.constexpr,
    DISTANCE: tl.constexpr,
    ID_MODE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BOUNDED: tl.constexpr,
    MAY_OVERFLOW: tl.constexpr,
    COUNTED: tl.constexpr,
    PEAK: tl.constexpr,
    STASH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_M anchors and `tiles` blocks of columns; sums have one fixed order.

    SYMMETRIC: columns are anchors too, and only pairs above the diagonal are visited; each serves
    its row and its column. A sum's peak is the hardest negative that it may hold, or the greatest
    height of those that it holds: of TWO_SIDED bounds, or of a circle, another than the hardest, if
    that is asked for: PEAK. COUNTED: kept pairs are.
    MAY_OVERFLOW: a similarity may not be finite, and makes its anchors' sums NaN.

    Most tiles hold negatives alone, and no padding: they go without a mask.
    """
    T: tl.constexpr = row_scale.dtype.element_ty
    local = tl.program_id(0) % blocks
    split = tl.program_id(0) // blocks
    block = first_block + local
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    start = split * tiles
    if SYMMETRIC:
        start = tl.maximum(start, block * BLOCK_M // BLOCK_N)
    end = tl.minimum(split * tiles + tiles, column_blocks)
    low, width = positive_tiles(first, last, rows, N, BLOCK_N)
    low, high = tl.maximum(low, start), tl.minimum(low + width, end)
    if SYMMETRIC:  # and what is left of the diagonal
        low = start
    if MAY_OVERFLOW or ID_MODE == GIVEN:
        low, high = start, end
    elif block * BLOCK_M + BLOCK_M > N:  # rows of padding
        low, high = start, end
    width = tl.maximum(high - low, 0)
    # The last tile may hold padding.
    tail = ((end > start) & (end * BLOCK_N > M) & ((width == 0) | (high < end))).to(tl.int32)

    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    row_there = rows < N
    if ID_MODE == GIVEN:
        row_there &= paired(rows, row_ids) >= 0
    row_above = tl.load(neg_above + rows)
    if TWO_SIDED:
        row_below = given(neg_below, rows, TWO_SIDED)
    peak = tl.full((BLOCK_M,), -INFINITY, T)
    hardest = peak
    sums = tl.zeros((BLOCK_M,), T)
    kept = tl.zeros((BLOCK_M,), tl.int32)
    for MASKED in tl.static_range(2):
        count = width + tail
        if MASKED == 0:
            count = tl.maximum(end - start, 0) - count
        for k in range(0, count):
            if MASKED:
                tile = tl.where(k < width, low + k, end - 1)
            else:
                tile = tl.where(start + k < low, start + k, start + k + width)
            columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            if SYMMETRIC:
                column_above = tl.load(neg_above + columns)
            sim = similarity(
                x, row_scale, rows, r, column_scale, columns, depth, MODE, DISTANCE, BLOCK_K
            )
            if MASKED:
                there = columns < M
                if ID_MODE == GIVEN:
                    there &= paired(columns, column_ids) >= 0
                pair = there[None, :] & row_there[:, None]
                if MAY_OVERFLOW:
                    broken = (tl.abs(sim) < INFINITY) == 0
                    broken &= pair
                if SYMMETRIC:
                    pair &= columns[None, :] > rows[:, None]
                pair &= same_class(row_first, row_last, columns) == 0
                if ID_MODE == GIVEN:  # in self mode an anchor is no negative of itself anyway
                    pair &= different(rows, columns, row_ids, column_ids, ID_MODE)
                sim = tl.where(pair, sim, -INFINITY)
                if MAY_OVERFLOW:
                    sim = tl.where(broken, INFINITY, sim)

            by_row = sim > row_above[:, None]
            own = sim
            if TWO_SIDED:
                under = sim < row_below[:, None]
                by_row &= under
                own = tl.where(under, sim, -INFINITY)
            if NEGATIVE == "ranked":
                row_total = compare(
                    sim, by_row, thresholds, reached, ranks_in_use, rows, padded, True
                )
                peak = tl.maximum(peak, tl.max(own, 1))
            elif BOUNDED:
                e = negative_summand(sim, 0, coefficients, NEGATIVE, BOUNDED)
                row_e = tl.where(by_row, e, 0)
                row_top, row_total = tl.reduce((own, row_e), 1, max_and_sum)
                peak = tl.maximum(peak, row_top)
            else:
                heights = height(sim, coefficients, NEGATIVE)
                if NEGATIVE == "circle":
                    own = tl.where(by_row, heights, -INFINITY)
                new_peak = tl.maximum(peak, tl.max(own, 1))
                reference = tl.where(new_peak == -INFINITY, 0, new_peak)
                e = negative_summand(heights, reference[:, None], coefficients, NEGATIVE, BOUNDED)
                row_total = tl.sum(tl.where(by_row, e, 0), 1)
                sums = rescaled(sums, peak, reference, coefficients, NEGATIVE == "circle")
                peak = new_peak
            sums += row_total
            if COUNTED:
                kept += tl.sum(by_row.to(tl.int32), 1)
            if PEAK:
                hardest = tl.maximum(hardest, tl.max(sim, 1))
            if MASKED and MAY_OVERFLOW:
                sums += tl.where(tl.max(broken.to(tl.int32), 1) > 0, float("nan"), 0)
            if SYMMETRIC:
                by_column = sim > column_above[None, :]
                own = sim
                if TWO_SIDED:
                    under = sim < given(neg_below, columns, TWO_SIDED)[None, :]
                    by_column &= under
                    own = tl.where(under, sim, -INFINITY)
                if NEGATIVE == "ranked":
                    column_total = compare(
                        sim, by_column, thresholds, reached, ranks_in_use, columns, padded, False
                    )
                    column_top = tl.max(own, 0)
                elif BOUNDED:
                    column_e = tl.where(by_column, e, 0)
                    column_top, column_total = tl.reduce((own, column_e), 0, max_and_sum)
                else:
                    if NEGATIVE == "circle":
                        own = tl.where(by_column, heights, -INFINITY)
                    column_top = tl.max(own, 0)
                    reference = tl.where(column_top == -INFINITY, 0, column_top)
                    e = negative_summand(
                        heights, reference[None, :], coefficients, NEGATIVE, BOUNDED
                    )
                    column_total = tl.sum(tl.where(by_column, e, 0), 0)
                if STASH:
                    write_stash(
                        stash, row_e, column_e, block, tile, column_blocks, BLOCK_M, BLOCK_N
                    )
                if MASKED and MAY_OVERFLOW:
                    some = tl.max(broken.to(tl.int32), 0) > 0
                    column_total += tl.where(some, float("nan"), 0)
                at = local.to(tl.int64) * column_cells + columns
                tl.store(column_peak + at, column_top)
                tl.store(column_sum + at, column_total)
                if COUNTED:
                    tl.store(column_kept + at, tl.sum(by_column.to(tl.int32), 0))
                if PEAK:
                    tl.store(column_hardest + at, tl.max(sim, 0))
    at = split.to(tl.int64) * row_cells + local * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(row_peak + at, peak)
    tl.store(row_sum + at, sums)
    if COUNTED:
        tl.store(row_kept + at, kept)
    if PEAK:
        tl.store(row_hardest + at, hardest)
