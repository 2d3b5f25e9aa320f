"""Negative scan: the one look at all pairs. `merge.py` sums its partial results."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.coefficients import mining_slack, negative_base
from ms_kernels.backends.triton.forms import negative_summand, rescaled
from ms_kernels.backends.triton.pairs import GIVEN, distinct, given, same_class
from ms_kernels.backends.triton.ranked import compare
from ms_kernels.backends.triton.similarity import similarity
from ms_kernels.backends.triton.softplus import INFINITY
from ms_kernels.backends.triton.stash import write_stash


@triton.jit
def rounded_up(mass):
    """A bfloat16 that is not less, and not 0 unless mass is."""
    least = tl.where(mass > 0, 1e-37, 0)
    return tl.maximum(mass * (1 + 2.0**-6), least).to(tl.float32).to(tl.bfloat16)


@triton.jit
def mass_of(sim, kept, totals, coefficients, NEGATIVE: tl.constexpr, BOUNDED: tl.constexpr):
    """No row or column of a tile sums to more; of pairs that may weigh anything infinite, and 0 if
    none weighs something."""
    if NEGATIVE == "hinge":  # a pair just on it adds nothing, and weighs
        some = tl.max((kept & (sim >= negative_base(coefficients))).to(tl.int32))
        return tl.where(some > 0, INFINITY, 0).to(sim.dtype)
    elif NEGATIVE == "exponential" and BOUNDED:
        return tl.max(totals)
    elif NEGATIVE == "exponential" or NEGATIVE == "circle":
        return tl.where(tl.max(totals) > 0, INFINITY, 0).to(sim.dtype)
    else:
        tl.static_assert(NEGATIVE == "sigmoid", "mass_of: unknown form")
        return tl.where(tl.max(totals) > 0, INFINITY, 0).to(sim.dtype)


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
    NEGATIVE: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    SYMMETRIC: tl.constexpr,
    BOUNDED: tl.constexpr,
    MAY_OVERFLOW: tl.constexpr,
    EXACT: tl.constexpr,
    COUNTED: tl.constexpr,
    PEAK: tl.constexpr,
    STASH: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_M anchors and `tiles` blocks of columns; sums have one fixed order.

    SYMMETRIC: columns are anchors too, and only pairs above the diagonal are visited; each serves
    its row and its column. A sum's peak is the hardest negative that it may hold. EXACT finds the
    hardest also of anchors that keep none, which of TWO_SIDED bounds is another: a PEAK of its own.
    COUNTED: kept pairs are. MAY_OVERFLOW: a similarity may not be finite, and makes its anchors'
    sums NaN.
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
    row_above = tl.load(neg_above + rows)
    if TWO_SIDED:
        row_below = given(neg_below, rows, TWO_SIDED)
    peak = tl.full((BLOCK_M,), -INFINITY, T)
    hardest = peak
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

        least = tl.min(row_above)
        if SYMMETRIC:
            # Infinite past M anyway: so said, the compiler needs fewer registers.
            column_above = tl.where(columns < M, tl.load(neg_above + columns), INFINITY)
            least = tl.minimum(least, tl.min(column_above))
        mass = tl.zeros((), T)
        column_top = tl.full((BLOCK_N,), -INFINITY, T)
        column_total = tl.zeros((BLOCK_N,), T)
        column_count = tl.zeros((BLOCK_N,), tl.int32)
        if EXACT:
            some = True
        else:
            # A tile may be passed over only if its hardest pair lies below every bound by more
            # than rounding: else a positive just at a bound would miss its hardest negative.
            ULPS: tl.constexpr = 2.0**-50 if T == tl.float64 else 2.0**-21
            slack = (tl.abs(least) + tl.abs(mining_slack(coefficients))) * ULPS
            some = tl.max(sim) > least - slack
        if some:
            by_row = sim > row_above[:, None]
            own = sim
            if TWO_SIDED:
                under = sim < row_below[:, None]
                by_row &= under
                own = tl.where(under, sim, -INFINITY)
            new_peak = tl.maximum(peak, tl.max(own, 1))
            reference = tl.where(new_peak == -INFINITY, 0, new_peak)
            if NEGATIVE == "ranked":
                row_total, most = compare(
                    sim, by_row, thresholds, reached, ranks_in_use, rows, padded, True
                )
                mass = tl.where(most > 0, INFINITY, 0).to(T)
            else:
                e = negative_summand(sim, reference[:, None], coefficients, NEGATIVE, BOUNDED)
                row_total = tl.sum(tl.where(by_row, e, 0), 1)
                mass = mass_of(sim, by_row, row_total, coefficients, NEGATIVE, BOUNDED)
            if COUNTED:
                kept += tl.sum(by_row.to(tl.int32), 1)
            if not BOUNDED:
                sums = rescaled(sums, peak, reference, coefficients)
            sums += row_total
            peak = new_peak
            if SYMMETRIC:
                by_column = sim > column_above[None, :]
                own = sim
                if TWO_SIDED:
                    under = sim < given(neg_below, columns, TWO_SIDED)[None, :]
                    by_column &= under
                    own = tl.where(under, sim, -INFINITY)
                column_top = tl.max(own, 0)
                if NEGATIVE == "ranked":
                    column_total, most = compare(
                        sim, by_column, thresholds, reached, ranks_in_use, columns, padded, False
                    )
                    column_mass = tl.where(most > 0, INFINITY, 0).to(T)
                else:
                    if not BOUNDED:
                        reference = tl.where(column_top == -INFINITY, 0, column_top)
                        e = negative_summand(
                            sim, reference[None, :], coefficients, NEGATIVE, BOUNDED
                        )
                    column_total = tl.sum(tl.where(by_column, e, 0), 0)
                    column_mass = mass_of(
                        sim, by_column, column_total, coefficients, NEGATIVE, BOUNDED
                    )
                if STASH:
                    write_stash(
                        stash, e, by_row, by_column, block, tile, column_blocks, BLOCK_M, BLOCK_N
                    )
                if COUNTED:
                    column_count = tl.sum(by_column.to(tl.int32), 0)
                mass = tl.maximum(mass, column_mass)
        if MAY_OVERFLOW:
            nan = float("nan")
            sums += tl.where(tl.max(broken.to(tl.int32), 1) > 0, nan, 0)
            if SYMMETRIC:
                column_total += tl.where(tl.max(broken.to(tl.int32), 0) > 0, nan, 0)
        if PEAK:
            hardest = tl.maximum(hardest, tl.max(sim, 1))
        if SYMMETRIC:
            at = local.to(tl.int64) * column_cells + columns
            tl.store(column_peak + at, column_top)
            tl.store(column_sum + at, column_total)
            if COUNTED:
                tl.store(column_kept + at, column_count)
            if PEAK:
                tl.store(column_hardest + at, tl.max(sim, 0))
        if not EXACT:
            tl.store(tile_mass + block.to(tl.int64) * column_blocks + tile, rounded_up(mass))
    at = split.to(tl.int64) * row_cells + local * BLOCK_M + tl.arange(0, BLOCK_M)
    tl.store(row_peak + at, peak)
    tl.store(row_sum + at, sums)
    if COUNTED:
        tl.store(row_kept + at, kept)
    if PEAK:
        tl.store(row_hardest + at, hardest)
