"""Gradient with respect to rows too deep to be held whole, from the exponentials that the negative
scan kept: no similarity is computed again but of tiles with positives."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.gradient_sums import as_operand, scaled, store_gradient
from ms_kernels.backends.triton.pairs import positive_tiles
from ms_kernels.backends.triton.similarity import multiply_add, similarity
from ms_kernels.backends.triton.stash import read_stash, stashed_weights
from ms_kernels.backends.triton.weights import pair_weights


@triton.jit(do_not_specialize=["parts", "N", "column_blocks", "scan_columns"])
def stashed_gradient_kernel(
    x,
    row_scale,
    row_norm,
    row_ids,
    terms,
    first,
    last,
    order,
    coefficients,
    stash,
    loss_scale,  # (1): of the loss's reduction, if SCALED
    poison,  # (1): 0, or NaN where no gradient is a number
    dx,  # (N, D) out, in the caller's order, not yet taken through the normalisation;
    # (parts, padded N, stride) sums instead, if SPLIT
    parts,  # programs that share a block of rows and a piece of their depth
    N,
    D,
    stride,
    padded,
    column_blocks,  # of BLOCK_M columns
    scan_columns,  # blocks of SCAN_N columns
    MODE: tl.constexpr,
    ID_MODE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    POSITIVE: tl.constexpr,
    SIGN: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    SCALED: tl.constexpr,
    SPLIT: tl.constexpr,
    SCAN_M: tl.constexpr,
    SCAN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_M rows and BLOCK_D of their depth; in self mode, columns are rows.

    Tiles are square, left of those with positives, among them, right of them.
    """
    pieces = tl.cdiv(stride, BLOCK_D)
    piece = tl.program_id(0) % pieces
    part = tl.program_id(0) // pieces % parts
    block = tl.program_id(0) // pieces // parts
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    depth = piece * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = depth < stride
    low, width = positive_tiles(first, last, rows, N, BLOCK_M)
    sums = tl.zeros((BLOCK_M, BLOCK_D), row_scale.dtype.element_ty)
    for KIND in tl.static_range(3):
        begin, end = low, low + width
        if KIND == 0:
            begin, end = low * 0, low
        elif KIND == 2:
            begin, end = low + width, column_blocks
        # The part's first tile at or after the beginning.
        begin += (part - begin % parts + parts) % parts
        for tile in range(begin, end, parts):
            columns = tile * BLOCK_M + tl.arange(0, BLOCK_M)
            factor = tl.load(row_scale + columns)
            other = tl.load(
                x + columns.to(tl.int64)[:, None] * stride + depth[None, :],
                mask=inside[None, :],
                other=0,
            )
            if KIND == 1:
                sim = similarity(x, row_scale, rows, x, row_scale, columns, stride, MODE, BLOCK_K)
                weight = pair_weights(
                    sim,
                    terms,
                    terms,
                    terms,
                    terms,
                    row_ids,
                    first,
                    last,
                    rows,
                    padded,
                    terms,
                    terms,
                    terms,
                    terms,
                    terms,
                    row_ids,
                    columns,
                    padded,
                    coefficients,
                    True,
                    True,
                    True,
                    True,
                    ID_MODE,
                    NEGATIVE,
                    POSITIVE,
                    SIGN,
                    HAS_OFFSET,
                    TWO_SIDED,
                )
            else:
                kept = read_stash(
                    stash, block, tile, scan_columns, KIND == 0, BLOCK_M, SCAN_M, SCAN_N
                )
                weight = stashed_weights(kept, terms, rows, padded, terms, columns, padded)
            weight = as_operand(weight, factor, other.dtype, MODE, WEIGHT_SCALE)
            sums = multiply_add(weight, other, sums, MODE)
    sums = scaled(sums, loss_scale, WEIGHT_SCALE, SCALED and not SPLIT)
    if SPLIT:
        at = (part.to(tl.int64) * padded + rows)[:, None] * stride + depth[None, :]
        tl.store(dx + at, sums, mask=inside[None, :])
    else:
        divisor = tl.load(row_norm + rows)
        store_gradient(sums, dx, order, divisor, poison, 0, rows, depth, N, D)
