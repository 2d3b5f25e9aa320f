"""Negative scan and merge: the one look at all pairs, and the sums of its partial results."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.family import CONTRASTIVE, TRIPLET, negative_term
from ms_kernels.backends.triton.multi_similarity import (
    INFINITY,
    negative_exponential,
    negative_threshold,
)
from ms_kernels.backends.triton.pairs import GIVEN, distinct, same_class
from ms_kernels.backends.triton.similarity import similarity
from ms_kernels.backends.triton.stash import write_stash
from ms_kernels.backends.triton.triplet import compare


@triton.jit
def rounded_up(mass):
    """A bfloat16 that is not less, and not 0 unless mass is."""
    least = tl.where(mass > 0, 1e-37, 0)
    return tl.maximum(mass * (1 + 2.0**-6), least).to(tl.float32).to(tl.bfloat16)


@triton.jit
def unbounded(sim, kept, count, coefficients, RULES: tl.constexpr):
    """Mass of a tile whose pairs may weigh anything: infinite if one of them weighs something."""
    some = tl.max(count)
    if RULES == CONTRASTIVE:
        some = tl.max((kept & (sim >= tl.load(coefficients + 2))).to(tl.int32))
    return tl.where(some > 0, INFINITY, 0).to(sim.dtype)


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
    hardest_positive,  # with RULES the bounds (3, padded), see `family_finish.py`
    row_hardest,  # (splits, row_cells) out: partials of this launch's rows
    row_sum,
    row_kept,
    column_hardest,  # (row blocks of this launch, padded M) out: partials of all columns
    column_sum,
    column_kept,
    stash,  # out: exponentials of tiles that keep a pair, if STASH; see `stash.py`
    tile_mass,  # (row blocks, column blocks) out unless EXACT: no row or column sums to more
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
    ID_MODE: tl.constexpr,
    RULES: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BOUNDED: tl.constexpr,
    MAY_OVERFLOW: tl.constexpr,
    EXACT: tl.constexpr,
    COUNT: tl.constexpr,
    STASH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_M anchors and `tiles` blocks of columns; sums have one fixed order.

    SYMMETRIC: columns are anchors too, and only pairs above the diagonal are visited; each serves
    its row and its column. COUNT kept pairs; EXACT also finds the hardest negative of anchors that
    keep none. MAY_OVERFLOW: a similarity may not be finite, and makes its anchors' sums NaN.
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

    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    row_threshold = tl.load(hardest_positive + rows)
    if RULES == 0:
        row_threshold = negative_threshold(row_threshold, coefficients)
    else:
        row_below = tl.load(hardest_positive + padded + rows)
    row_threshold = tl.where(rows < N, row_threshold, INFINITY)
    hardest = tl.full((BLOCK_M,), -INFINITY, T)
    sums = tl.zeros((BLOCK_M,), T)
    kept = tl.zeros((BLOCK_M,), tl.int32)
    for tile in range(start, end):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        sim = similarity(x, row_scale, rows, r, column_scale, columns, depth, MODE, BLOCK_K)
        pair = (columns < M)[None, :] & (rows < N)[:, None]
        if MAY_OVERFLOW:
            broken = (tl.abs(sim) < INFINITY) == 0
            broken &= pair
        if SYMMETRIC:
            pair &= columns[None, :] > rows[:, None]
        pair &= same_class(row_first, row_last, columns) == 0
        if ID_MODE == GIVEN:  # in self mode an anchor is no negative of itself anyway
            pair &= distinct(rows, columns, row_ids, column_ids, ID_MODE)
        sim = tl.where(pair, sim, -INFINITY)
        if MAY_OVERFLOW:
            sim = tl.where(broken, INFINITY, sim)

        least = tl.min(row_threshold)
        if SYMMETRIC:
            column_threshold = tl.load(hardest_positive + columns)
            if RULES == 0:
                column_threshold = negative_threshold(column_threshold, coefficients)
            column_threshold = tl.where(columns < M, column_threshold, INFINITY)
            least = tl.minimum(least, tl.min(column_threshold))
        mass = tl.zeros((), T)
        column_top = tl.full((BLOCK_N,), -INFINITY, T)
        column_total = tl.zeros((BLOCK_N,), T)
        column_count = tl.zeros((BLOCK_N,), tl.int32)
        if EXACT:
            row_top = tl.max(sim, 1)
            some = True
        else:
            # A tile may be passed over only if its hardest pair lies below every threshold by more
            # than rounding: else a positive just at a threshold would miss its hardest negative.
            ULPS: tl.constexpr = 2.0**-50 if T == tl.float64 else 2.0**-21
            slack = (tl.abs(least) + tl.abs(tl.load(coefficients + 3))) * ULPS
            some = tl.max(sim) > least - slack
        if some:
            by_row = sim > row_threshold[:, None]
            own = sim
            if RULES != 0:
                under = sim < row_below[:, None]
                by_row &= under
                own = tl.where(under, sim, -INFINITY)
            row_top = tl.max(own, 1)
            new_hardest = tl.maximum(hardest, row_top)
            reference = tl.where(new_hardest == -INFINITY, 0, new_hardest)
            if RULES == TRIPLET:  # the terms follow the bounds
                row_total, reached = compare(
                    sim, by_row, hardest_positive + 3 * padded, rows, padded, coefficients, True
                )
            else:
                e = negative_term(sim, reference[:, None], coefficients, BOUNDED, RULES)
                row_total = tl.sum(tl.where(by_row, e, 0), 1)
            if COUNT:
                row_count = tl.sum(by_row.to(tl.int32), 1)
                kept += row_count
            if RULES == TRIPLET:
                mass = tl.where(reached > 0, INFINITY, 0).to(T)
            elif RULES != 0:
                mass = unbounded(sim, by_row, row_count, coefficients, RULES)
            elif BOUNDED:
                mass = tl.max(row_total)
            else:
                mass = tl.where(tl.max(row_total) > 0, INFINITY, 0).to(T)
            if not BOUNDED:
                sums *= tl.where(
                    sums > 0, negative_exponential(hardest, reference, coefficients, False), 0
                )
            sums += row_total
            hardest = new_hardest
            if SYMMETRIC:
                by_column = sim > column_threshold[None, :]
                own = sim
                if RULES != 0:
                    under = sim < tl.load(hardest_positive + padded + columns)[None, :]
                    by_column &= under
                    own = tl.where(under, sim, -INFINITY)
                column_top = tl.max(own, 0)
                if not BOUNDED:
                    reference = tl.where(column_top == -INFINITY, 0, column_top)
                    e = negative_exponential(sim, reference[None, :], coefficients, BOUNDED)
                if RULES == TRIPLET:
                    column_total, reached = compare(
                        sim,
                        by_column,
                        hardest_positive + 3 * padded,
                        columns,
                        padded,
                        coefficients,
                        False,
                    )
                else:
                    column_total = tl.sum(tl.where(by_column, e, 0), 0)
                if STASH:
                    write_stash(
                        stash, e, by_row, by_column, block, tile, column_blocks, BLOCK_M, BLOCK_N
                    )
                if COUNT:
                    column_count = tl.sum(by_column.to(tl.int32), 0)
                column_mass = tl.max(column_total)
                if RULES == TRIPLET:
                    column_mass = tl.where(reached > 0, INFINITY, 0).to(T)
                elif RULES != 0:
                    column_mass = unbounded(sim, by_column, column_count, coefficients, RULES)
                elif not BOUNDED:
                    column_mass = tl.where(column_mass > 0, INFINITY, 0).to(T)
                mass = tl.maximum(mass, column_mass)
        if MAY_OVERFLOW:
            nan = float("nan")
            sums += tl.where(tl.max(broken.to(tl.int32), 1) > 0, nan, 0)
            if SYMMETRIC:
                column_total += tl.where(tl.max(broken.to(tl.int32), 0) > 0, nan, 0)
        if SYMMETRIC:
            at = local.to(tl.int64) * column_cells + columns
            tl.store(column_hardest + at, column_top)
            tl.store(column_sum + at, column_total)
            if COUNT:
                tl.store(column_kept + at, column_count)
        if not EXACT:
            tl.store(tile_mass + block.to(tl.int64) * column_blocks + tile, rounded_up(mass))
    at = split.to(tl.int64) * row_cells + local * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(row_hardest + at, hardest)
    tl.store(row_sum + at, sums)
    if COUNT:
        tl.store(row_kept + at, kept)


@triton.jit
def merged(
    hardest,
    sums,
    kept,
    at,
    more_hardest,
    more_sum,
    more_kept,
    coefficients,
    BOUNDED: tl.constexpr,
    COUNT: tl.constexpr,
):
    """One more partial. Sums refer to `base` where BOUNDED, else to their partial's hardest."""
    top, total = tl.load(more_hardest + at), tl.load(more_sum + at)
    new = tl.maximum(hardest, top)
    if BOUNDED:
        sums += total
    else:
        reference = tl.where(new == -INFINITY, 0, new)
        # A sum that is 0 has nothing to rescale, and its hardest may be -inf.
        ours = tl.where(
            sums == 0, 0, sums * negative_exponential(hardest, reference, coefficients, False)
        )
        more = tl.where(
            total == 0, 0, total * negative_exponential(top, reference, coefficients, False)
        )
        sums = ours + more
    if COUNT:
        kept += tl.load(more_kept + at)
    return new, sums, kept


@triton.jit(do_not_specialize=["first_block", "blocks", "splits", "tiles"])
def merge_kernel(
    coefficients,
    row_hardest,
    row_sum,
    row_kept,
    column_hardest,
    column_sum,
    column_kept,
    hardest_negative,  # (padded N) in and out
    negative_sum,
    neg_kept,
    first_block,
    blocks,
    splits,
    row_cells,
    column_cells,
    tiles,
    SYMMETRIC: tl.constexpr,
    BOUNDED: tl.constexpr,
    COUNT: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """One program adds a launch's partials to BLOCK_M anchors, in the order of blocks."""
    block = tl.program_id(0)
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    hardest = tl.load(hardest_negative + rows)
    sums = tl.load(negative_sum + rows)
    kept = tl.zeros((BLOCK_M,), tl.int32)
    wide = tl.zeros((BLOCK_M,), tl.int64)
    if COUNT:
        kept = tl.load(neg_kept + rows)
    if SYMMETRIC:
        # Row blocks whose tiles reach this block's columns: the scan starts at its own.
        reach = block * BLOCK_M // BLOCK_N * BLOCK_N + BLOCK_N
        for local in range(0, tl.minimum(blocks, (reach - 1) // BLOCK_M + 1 - first_block)):
            at = (wide + local) * column_cells + rows
            hardest, sums, kept = merged(
                hardest,
                sums,
                kept,
                at,
                column_hardest,
                column_sum,
                column_kept,
                coefficients,
                BOUNDED,
                COUNT,
            )
    local = block - first_block
    if (local >= 0) & (local < blocks):
        start = 0
        if SYMMETRIC:
            start = block * BLOCK_M // BLOCK_N // tiles
        for split in range(start, splits):
            at = (wide + split) * row_cells + local * BLOCK_M + tl.arange(0, BLOCK_M)
            hardest, sums, kept = merged(
                hardest,
                sums,
                kept,
                at,
                row_hardest,
                row_sum,
                row_kept,
                coefficients,
                BOUNDED,
                COUNT,
            )
    tl.store(hardest_negative + rows, hardest)
    tl.store(negative_sum + rows, sums)
    if COUNT:
        tl.store(neg_kept + rows, kept)
