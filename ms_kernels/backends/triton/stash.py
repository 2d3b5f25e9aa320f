"""Exponentials that the negative scan keeps for the gradient, in bfloat16.

One number a pair says all: exp(beta (S - base)) where its row or its column keeps it as a negative,
0 where none does. Which of both it is follows from the bounds: what passes the higher one passes
the lower one too. So a positive number was kept by the side with the lower bound, a negative number
by both.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.terms import NEG_ABOVE, NEG_FACTOR, NEG_OFFSET, term


@triton.jit
def tiles_before(block, column_blocks, RATIO: tl.constexpr):
    """Scan tiles of earlier row blocks; block i starts at column block i // RATIO."""
    whole = block // RATIO
    left_out = RATIO * (whole * (whole - 1) // 2) + whole * (block - RATIO * whole)
    return block.to(tl.int64) * column_blocks - left_out


@triton.jit
def write_stash(stash, e, by_row, by_column, block, tile, column_blocks, BLOCK_M, BLOCK_N):
    kept = tl.where(by_row | by_column, e, 0)
    kept = tl.where(by_row & by_column, -kept, kept)
    index = (
        tiles_before(block, column_blocks, BLOCK_N // BLOCK_M) + tile - block * BLOCK_M // BLOCK_N
    )
    local_row, local_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    at = stash + index * (BLOCK_M * BLOCK_N)
    at += local_row[:, None] * BLOCK_N + local_column[None, :]
    tl.store(at, kept.to(tl.bfloat16))


@triton.jit
def read_stash(
    stash,
    rows,
    columns,
    column_blocks,  # of the scan
    BELOW: tl.constexpr,  # the tile lies below the diagonal: it was scanned as its mirror image
    SCAN_M: tl.constexpr,
    SCAN_N: tl.constexpr,
):
    """(rows, columns) of one block of SCAN_M rows and SCAN_M columns, off the diagonal."""
    i = rows[:, None]
    j = columns[None, :]
    if BELOW:
        i = columns[None, :]
        j = rows[:, None]
    block, tile = i // SCAN_M, j // SCAN_N
    index = tiles_before(block, column_blocks, SCAN_N // SCAN_M) + tile - block * SCAN_M // SCAN_N
    at = index * (SCAN_M * SCAN_N) + i % SCAN_M * SCAN_N + j % SCAN_N
    return tl.load(stash + at)


@triton.jit
def stashed_weights(kept, row_terms, rows, row_padded, column_terms, columns, column_padded):
    """Weights of both sides from what `write_stash` kept; see `terms.py`."""
    kept = kept.to(row_terms.dtype.element_ty)
    row_above = term(row_terms, NEG_ABOVE, rows, row_padded, True)
    column_above = term(column_terms, NEG_ABOVE, columns, column_padded, False)
    row_offset = term(row_terms, NEG_OFFSET, rows, row_padded, True)
    column_offset = term(column_terms, NEG_OFFSET, columns, column_padded, False)
    row_factor = term(row_terms, NEG_FACTOR, rows, row_padded, True) * tl.exp(-row_offset)
    column_factor = term(column_terms, NEG_FACTOR, columns, column_padded, False)
    column_factor *= tl.exp(-column_offset)
    by_row = (kept < 0) | (row_above <= column_above)
    by_column = (kept < 0) | (column_above < row_above)
    factor = tl.where(by_row, row_factor, 0) + tl.where(by_column, column_factor, 0)
    return tl.abs(kept) * factor
