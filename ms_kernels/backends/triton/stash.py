"""Exponentials that the negative scan keeps for the gradient, in bfloat16.

One number a pair says all: exp(beta (S - base)) where its row or its column keeps it as a negative,
0 where none does. Which of both it is follows from the bounds: what passes the higher one passes
the lower one too. So a positive number was kept by the side with the lower bound, a negative number
by both.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.terms import NEG_ABOVE, NEG_FACTOR, term


@triton.jit
def stashed_tile(row_block, tile, column_blocks, SCAN_M: tl.constexpr, SCAN_N: tl.constexpr):
    """Where a tile of the scan lies: those of a row block from the diagonal on, one after another.

    A row block starts at the tile row_block SCAN_M // SCAN_N.
    """
    block = tl.zeros((), tl.int64) + row_block
    if SCAN_N >= SCAN_M:
        RATIO: tl.constexpr = SCAN_N // SCAN_M
        whole = block // RATIO
        left_out = RATIO * (whole * (whole - 1) // 2) + whole * (block - RATIO * whole)
    else:
        left_out = SCAN_M // SCAN_N * (block * (block - 1) // 2)
    index = block * column_blocks - left_out + tile - block * SCAN_M // SCAN_N
    return index * (SCAN_M * SCAN_N)


@triton.jit
def write_stash(stash, by_row, by_column, block, tile, column_blocks, BLOCK_M, BLOCK_N):
    """by_row, by_column: exponentials of the kept pairs, 0 of others."""
    kept = tl.where(by_row == by_column, -by_row, tl.maximum(by_row, by_column))
    local_row, local_column = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    at = stash + stashed_tile(block, tile, column_blocks, BLOCK_M, BLOCK_N)
    tl.store(at + local_row[:, None] * BLOCK_N + local_column[None, :], kept.to(tl.bfloat16))


@triton.jit
def stashed_weights(kept, row_terms, rows, row_padded, column_terms, columns, column_padded):
    """Weights of both sides from what `write_stash` kept; see `terms.py`."""
    row_above = term(row_terms, NEG_ABOVE, rows, row_padded, True)
    column_above = term(column_terms, NEG_ABOVE, columns, column_padded, False)
    row_factor = term(row_terms, NEG_FACTOR, rows, row_padded, True)
    column_factor = term(column_terms, NEG_FACTOR, columns, column_padded, False)
    by_row = (kept < 0) | (row_above <= column_above)
    by_column = (kept < 0) | (column_above < row_above)
    factor = tl.where(by_row, row_factor, 0) + tl.where(by_column, column_factor, 0)
    return tl.abs(kept) * factor
