"""Gradient with respect to rows too deep to be held whole, from the exponentials that the negative
scan kept: they become weights where they lie, and what is left is a product of matrices.

A weight G_ij + G_ji is that of G_ji + G_ij, so that the tiles from the diagonal on are all there
is. Times the scales of both rows it stays so; the row's own is taken out again at the end.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.gradient_sums import scaled, store_gradient
from ms_kernels.backends.triton.pairs import positive_tiles
from ms_kernels.backends.triton.similarity import multiply_add, similarity
from ms_kernels.backends.triton.stash import stashed_tile, stashed_weights
from ms_kernels.backends.triton.weights import pair_weights


@triton.jit
def both_scales(row_scale, rows, columns, WEIGHT_SCALE: tl.constexpr):
    factor = tl.load(row_scale + rows)[:, None] * tl.load(row_scale + columns)[None, :]
    return factor * WEIGHT_SCALE


@triton.jit
def within_tile(BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return tl.arange(0, BLOCK_M)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]


@triton.jit(do_not_specialize=["column_blocks"])
def stash_weights_kernel(
    row_scale,
    terms,
    stash,  # exponentials
    weights,  # the same memory, in the dtype of the copies: out
    padded,
    column_blocks,
    WEIGHT_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,  # of the scan, as BLOCK_N
    BLOCK_N: tl.constexpr,
):
    """One program turns one tile of the scan into weights, as if it held negatives alone."""
    block, tile = tl.program_id(1), tl.program_id(0)
    if tile >= block * BLOCK_M // BLOCK_N:
        rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        begin = tl.multiple_of(stashed_tile(block, tile, column_blocks, BLOCK_M, BLOCK_N), 16)
        at = within_tile(BLOCK_M, BLOCK_N)
        kept = tl.load(stash + begin + at).to(tl.float32)
        weight = stashed_weights(kept, terms, rows, padded, terms, columns, padded)
        weight *= both_scales(row_scale, rows, columns, WEIGHT_SCALE)
        tl.store(weights + begin + at, weight.to(weights.dtype.element_ty))


@triton.jit(do_not_specialize=["N", "column_blocks"])
def positive_weights_kernel(
    x,
    row_scale,
    row_ids,
    terms,
    first,
    last,
    coefficients,
    weights,  # in and out
    N,
    stride,
    padded,
    column_blocks,
    MODE: tl.constexpr,
    ID_MODE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    POSITIVE: tl.constexpr,
    SIGN: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    PARTS: tl.constexpr,  # programs that share a block of rows
    BLOCK_M: tl.constexpr,  # of the scan, as all blocks here
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Writes the tiles with positives of a block of rows, and those that the diagonal crosses, from
    similarities that are computed anew. In self mode columns are rows."""
    block, part = tl.program_id(0) // PARTS, tl.program_id(0) % PARTS
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    low, width = positive_tiles(first, last, rows, N, BLOCK_N)
    diagonal = block * BLOCK_M // BLOCK_N
    end = tl.maximum(low + width, tl.cdiv((block + 1) * BLOCK_M, BLOCK_N))
    for tile in range(diagonal + part, tl.minimum(end, column_blocks), PARTS):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        sim = similarity(x, row_scale, rows, x, row_scale, columns, stride, MODE, "none", BLOCK_K)
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
        weight *= both_scales(row_scale, rows, columns, WEIGHT_SCALE)
        begin = stashed_tile(block, tile, column_blocks, BLOCK_M, BLOCK_N)
        at = weights + begin + within_tile(BLOCK_M, BLOCK_N)
        tl.store(at, weight.to(weights.dtype.element_ty))


@triton.jit(do_not_specialize=["parts", "N", "column_blocks"])
def stashed_gradient_kernel(
    x,
    row_scale,
    row_norm,
    order,
    weights,  # of the tiles from the diagonal on, times both rows' scales
    loss_scale,  # (1): of the loss's reduction, if SCALED
    poison,  # (1): 0, or NaN where no gradient is a number
    dx,  # (N, D) out, in the caller's order, not yet taken through the normalisation;
    # (parts, padded N, stride) sums instead, if SPLIT
    parts,  # programs that share a block of rows and a piece of their depth
    N,
    D,
    stride,
    padded,
    column_blocks,  # of the scan
    MODE: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    SCALED: tl.constexpr,
    SPLIT: tl.constexpr,
    WHOLE: tl.constexpr,  # BLOCK_D divides the stride
    SCAN_M: tl.constexpr,
    SCAN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,  # divides SCAN_M
    BLOCK_N: tl.constexpr,  # divides SCAN_M and SCAN_N
    BLOCK_D: tl.constexpr,
):
    """One program owns BLOCK_M rows and BLOCK_D of their depth.

    What lies left of the diagonal is read as its mirror image.
    """
    pieces = tl.cdiv(stride, BLOCK_D)
    piece = tl.program_id(0) % pieces
    part = tl.program_id(0) // pieces % parts
    block = tl.program_id(0) // pieces // parts
    start = block * BLOCK_M
    local_row, local = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_N)
    rows = start + local_row
    depth = piece * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = depth < stride
    scan_block = start // SCAN_M
    diagonal = scan_block * SCAN_M // SCAN_N * (SCAN_N // BLOCK_N)
    # Within a tile of the scan, so that the compiler sees what lies side by side.
    direct = local_row[:, None] * SCAN_N + local[None, :]
    mirrored = (local_row // SCAN_N * (SCAN_M * SCAN_N) + local_row % SCAN_N)[:, None]
    mirrored += local[None, :] * SCAN_N
    others = local[:, None] * stride + depth[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_D), row_scale.dtype.element_ty)
    for MIRRORED in tl.static_range(2):
        begin, end = diagonal, column_blocks * (SCAN_N // BLOCK_N)
        if MIRRORED:
            begin, end = diagonal * 0, diagonal
        # The part's first tile at or after the beginning.
        begin += (part - begin % parts + parts) % parts
        for tile in range(begin, end, parts):
            column = tile * BLOCK_N
            if MIRRORED:
                at = stashed_tile(column // SCAN_M, start // SCAN_N, column_blocks, SCAN_M, SCAN_N)
                at += column % SCAN_M * SCAN_N + start % SCAN_N
                weight = tl.load(weights + tl.multiple_of(at, 16) + mirrored)
            else:
                at = stashed_tile(scan_block, column // SCAN_N, column_blocks, SCAN_M, SCAN_N)
                at += start % SCAN_M * SCAN_N + column % SCAN_N
                weight = tl.load(weights + tl.multiple_of(at, 16) + direct)
            source = x + column.to(tl.int64) * stride + others
            if WHOLE:
                other = tl.load(source)
            else:
                other = tl.load(source, mask=inside[None, :], other=0)
            sums = multiply_add(weight, other, sums, MODE)
    factor = tl.load(row_scale + rows)
    sums /= tl.where(factor == 0, 1, factor)[:, None]
    sums = scaled(sums, loss_scale, WEIGHT_SCALE, SCALED and not SPLIT)
    if SPLIT:
        at = (part.to(tl.int64) * padded + rows)[:, None] * stride + depth[None, :]
        tl.store(dx + at, sums, mask=inside[None, :])
    else:
        divisor = tl.load(row_norm + rows)
        store_gradient(sums, dx, order, divisor, poison, 0, rows, depth, N, D)
