"""Which tiles the gradient must visit: for each block of rows a list of blocks of columns.

Lists are built on the device: a branch in the gradient's loop would stop its loads from running
ahead. Blocks are GROUP wide on both sides.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.pairs import positive_range
from ms_kernels.backends.triton.softplus import INFINITY
from ms_kernels.backends.triton.terms import NEG_OFFSET


@triton.jit(do_not_specialize=["listed", "N", "M", "mass_columns", "column_blocks"])
def tile_list_kernel(
    first,
    last,
    tile_mass,  # (row blocks, column blocks) of the negative scan, GROUP by SCAN_N pairs, bfloat16
    row_terms,
    column_terms,
    tolerance,  # (1): weight that a row may lose in all
    tiles,  # (blocks, column_blocks) out, int32: tiles with positives first, each kind ascending
    counts,  # (blocks, 2) out: tiles with positives, tiles in all
    listed,  # first block of rows of the list
    N,
    M,
    row_padded,
    column_padded,
    mass_columns,
    column_blocks,  # of GROUP columns
    HAS_MASS: tl.constexpr,  # else every tile is listed
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    SYMMETRIC: tl.constexpr,  # the scan visited tiles on and above the diagonal
    TRANSPOSED: tl.constexpr,  # these rows were the scan's columns
    GROUP: tl.constexpr,
    SCAN_N: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program lists the tiles of one block of rows.

    A row's kept negatives in a tile weigh at most tile mass times the greatest exp(-offset) of the
    tile's rows and columns. A tile is left out if that is 0, or so little that a row loses no more
    than `tolerance` over all tiles.
    """
    T: tl.constexpr = row_terms.dtype.element_ty
    block = listed + tl.program_id(0)
    rows = block.to(tl.int64) * GROUP + tl.arange(0, GROUP)
    low, high = positive_range(first, last, rows, N)
    low_block = low // GROUP
    high_block = tl.where(high > low, (high + GROUP - 1) // GROUP, low_block)
    out = tiles + tl.program_id(0).to(tl.int64) * column_blocks
    for start in range(low_block, high_block, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        tl.store(out + tile - low_block, tile, mask=tile < high_block)
    positives = high_block - low_block
    count = positives
    if HAS_MASS:
        row_factor = tl.zeros((), T)
        if HAS_ROW:
            row_factor = tl.exp(-tl.min(tl.load(row_terms + NEG_OFFSET * row_padded + rows)))
        # An anchor's tiles lie along a row of blocks, or along a column.
        most_tiles = tl.maximum(column_blocks, tl.cdiv(N, GROUP))
        most = tl.zeros((BLOCK,), T) + tl.load(tolerance) / most_tiles
        skip_none = most <= 0
    for start in range(0, column_blocks, BLOCK):
        tile = start + tl.arange(0, BLOCK)
        some = (tile < column_blocks) & ((tile < low_block) | (tile >= high_block))
        if HAS_MASS:
            wide = tile.to(tl.int64)
            own = block.to(tl.int64)
            by_row = own * mass_columns + wide * GROUP // SCAN_N
            by_column = wide * mass_columns + own * GROUP // SCAN_N
            at = by_row
            if TRANSPOSED:
                at = by_column
            if SYMMETRIC:
                at = tl.where(wide < own, by_column, by_row)
            mass = tl.load(tile_mass + at, mask=some, other=0).to(T)
            factor = tl.zeros((BLOCK,), T) + row_factor
            if HAS_COLUMN:
                columns = wide[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
                at = column_terms + NEG_OFFSET * column_padded + columns
                offset = tl.load(at, mask=some[:, None], other=INFINITY)
                factor = tl.maximum(factor, tl.exp(-tl.min(offset, 1)))
            light = mass * factor <= most  # false where mass is infinite, whatever the factor
            some &= mass > 0
            some &= (light == 0) | skip_none
        place = count + tl.cumsum(some.to(tl.int32), 0) - 1
        tl.store(out + place, tile, mask=some)
        count += tl.sum(some.to(tl.int32))
    at = counts + 2 * tl.program_id(0)
    tl.store(at, positives)
    tl.store(at + 1, count)
