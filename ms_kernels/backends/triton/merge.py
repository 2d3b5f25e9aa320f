"""Merge: the sums of the negative scan's partial results."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.forms import rescaled
from ms_kernels.backends.triton.softplus import INFINITY

# Partials that are added at once, in the order of blocks: launches of the scan go by whole groups
# of them, so that the order does not depend on their number.
CELLS = tl.constexpr(8)


@triton.jit
def merged(
    peak,
    sums,
    kept,
    hardest,
    at,  # (CELLS, rows)
    present,
    more_peak,
    more_sum,
    more_kept,
    more_hardest,
    coefficients,
    BOUNDED: tl.constexpr,
    CIRCLE: tl.constexpr,
    COUNTED: tl.constexpr,
    PEAK: tl.constexpr,
):
    """More partials. Sums refer to their base where BOUNDED, else to their partial's peak."""
    top = tl.load(more_peak + at, mask=present, other=-INFINITY)
    total = tl.load(more_sum + at, mask=present, other=0)
    new = tl.maximum(peak, tl.max(top, 0))
    if BOUNDED:
        sums += tl.sum(total, 0)
    else:
        reference = tl.where(new == -INFINITY, 0, new)
        ours = rescaled(sums, peak, reference, coefficients, CIRCLE)
        sums = ours + tl.sum(rescaled(total, top, reference[None, :], coefficients, CIRCLE), 0)
    if COUNTED:
        kept += tl.sum(tl.load(more_kept + at, mask=present, other=0), 0)
    if PEAK:
        more = tl.load(more_hardest + at, mask=present, other=-INFINITY)
        hardest = tl.maximum(hardest, tl.max(more, 0))
    return new, sums, kept, hardest


@triton.jit(do_not_specialize=["first_block", "blocks", "splits", "tiles"])
def merge_kernel(
    coefficients,
    row_peak,
    row_sum,
    row_kept,
    row_hardest,
    column_peak,
    column_sum,
    column_kept,
    column_hardest,
    negative_peak,  # (padded N) out, and in unless FIRST
    negative_sum,
    neg_kept,  # if COUNTED
    hardest_negative,  # if PEAK
    first_block,
    blocks,
    splits,
    row_cells,
    column_cells,
    tiles,
    SYMMETRIC: tl.constexpr,
    FIRST: tl.constexpr,  # there are no totals yet
    BOUNDED: tl.constexpr,
    CIRCLE: tl.constexpr,  # peaks are exponents, of a circle that is not BOUNDED
    COUNTED: tl.constexpr,
    PEAK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK: tl.constexpr,  # divides BLOCK_M and BLOCK_N
):
    """One program adds a launch's partials to BLOCK anchors."""
    T: tl.constexpr = negative_peak.dtype.element_ty
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    block = tl.program_id(0) * BLOCK // BLOCK_M
    peak = tl.full((BLOCK,), -INFINITY, T)
    sums = tl.zeros((BLOCK,), T)
    kept = tl.zeros((BLOCK,), tl.int32)
    hardest = peak
    if not FIRST:
        peak = tl.load(negative_peak + rows)
        sums = tl.load(negative_sum + rows)
        if COUNTED:
            kept = tl.load(neg_kept + rows)
        if PEAK:
            hardest = tl.load(hardest_negative + rows)
    cell = tl.arange(0, CELLS).to(tl.int64)[:, None]
    if SYMMETRIC:
        # Row blocks whose tiles reach these columns: the scan starts at its own.
        reach = tl.program_id(0) * BLOCK // BLOCK_N * BLOCK_N + BLOCK_N
        end = tl.minimum(blocks, (reach - 1) // BLOCK_M + 1 - first_block)
        for start in range(0, end, CELLS):
            local = start + cell
            peak, sums, kept, hardest = merged(
                peak,
                sums,
                kept,
                hardest,
                local * column_cells + rows[None, :],
                (local < end) & (rows >= 0)[None, :],
                column_peak,
                column_sum,
                column_kept,
                column_hardest,
                coefficients,
                BOUNDED,
                CIRCLE,
                COUNTED,
                PEAK,
            )
    local = block - first_block
    if (local >= 0) & (local < blocks):
        begin = 0
        if SYMMETRIC:
            begin = block * BLOCK_M // BLOCK_N // tiles
        for start in range(begin, splits, CELLS):
            split = start + cell
            peak, sums, kept, hardest = merged(
                peak,
                sums,
                kept,
                hardest,
                split * row_cells + (rows - first_block * BLOCK_M)[None, :],
                (split < splits) & (rows >= 0)[None, :],
                row_peak,
                row_sum,
                row_kept,
                row_hardest,
                coefficients,
                BOUNDED,
                CIRCLE,
                COUNTED,
                PEAK,
            )
    tl.store(negative_peak + rows, peak)
    tl.store(negative_sum + rows, sums)
    if COUNTED:
        tl.store(neg_kept + rows, kept)
    if PEAK:
        tl.store(hardest_negative + rows, hardest)
