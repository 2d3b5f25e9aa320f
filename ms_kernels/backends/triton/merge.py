"""Merge: the sums of the negative scan's partial results."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.forms import rescaled
from ms_kernels.backends.triton.softplus import INFINITY


@triton.jit
def merged(
    peak,
    sums,
    kept,
    hardest,
    at,
    more_peak,
    more_sum,
    more_kept,
    more_hardest,
    coefficients,
    BOUNDED: tl.constexpr,
    COUNTED: tl.constexpr,
    PEAK: tl.constexpr,
):
    """One more partial. Sums refer to their base where BOUNDED, else to their partial's peak."""
    top, total = tl.load(more_peak + at), tl.load(more_sum + at)
    new = tl.maximum(peak, top)
    if BOUNDED:
        sums += total
    else:
        reference = tl.where(new == -INFINITY, 0, new)
        ours = rescaled(sums, peak, reference, coefficients)
        sums = ours + rescaled(total, top, reference, coefficients)
    if COUNTED:
        kept += tl.load(more_kept + at)
    if PEAK:
        hardest = tl.maximum(hardest, tl.load(more_hardest + at))
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
    negative_peak,  # (padded N) in and out
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
    BOUNDED: tl.constexpr,
    COUNTED: tl.constexpr,
    PEAK: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program adds a launch's partials to BLOCK_M anchors, in the order of blocks."""
    block = tl.program_id(0)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    peak = tl.load(negative_peak + rows)
    sums = tl.load(negative_sum + rows)
    kept = tl.zeros((BLOCK_M,), tl.int32)
    hardest = peak
    wide = tl.zeros((BLOCK_M,), tl.int64)
    if COUNTED:
        kept = tl.load(neg_kept + rows)
    if PEAK:
        hardest = tl.load(hardest_negative + rows)
    if SYMMETRIC:
        # Row blocks whose tiles reach this block's columns: the scan starts at its own.
        reach = block * BLOCK_M // BLOCK_N * BLOCK_N + BLOCK_N
        for local in range(0, tl.minimum(blocks, (reach - 1) // BLOCK_M + 1 - first_block)):
            at = (wide + local) * column_cells + rows
            peak, sums, kept, hardest = merged(
                peak,
                sums,
                kept,
                hardest,
                at,
                column_peak,
                column_sum,
                column_kept,
                column_hardest,
                coefficients,
                BOUNDED,
                COUNTED,
                PEAK,
            )
    local = block - first_block
    if (local >= 0) & (local < blocks):
        start = 0
        if SYMMETRIC:
            start = block * BLOCK_M // BLOCK_N // tiles
        for split in range(start, splits):
            at = (wide + split) * row_cells + local * BLOCK_M + tl.arange(0, BLOCK_M)
            peak, sums, kept, hardest = merged(
                peak,
                sums,
                kept,
                hardest,
                at,
                row_peak,
                row_sum,
                row_kept,
                row_hardest,
                coefficients,
                BOUNDED,
                COUNTED,
                PEAK,
            )
    tl.store(negative_peak + rows, peak)
    tl.store(negative_sum + rows, sums)
    if COUNTED:
        tl.store(neg_kept + rows, kept)
    if PEAK:
        tl.store(hardest_negative + rows, hardest)
