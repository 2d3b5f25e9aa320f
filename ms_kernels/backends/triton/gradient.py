"""Gradient with respect to the rows: dx_i = sum_j W_ij u_j, by programs that hold rows whole.

So up to a depth that fits registers; beyond, see `gradient_stash.py` and `gradient_panels.py`.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.gradient_sums import as_operand, scaled, store_gradient
from ms_kernels.backends.triton.pairs import positive_tiles
from ms_kernels.backends.triton.rows import through_normalisation
from ms_kernels.backends.triton.similarity import multiply_add, similarity_of
from ms_kernels.backends.triton.weights import pair_weights


@triton.jit(do_not_specialize=["parts", "N", "column_blocks"])
def gradient_kernel(
    x,
    row_scale,
    row_norm,
    row_ids,
    row_terms,
    row_thresholds,  # of ranked rules, as what follows: see `ranked.py`
    row_pulls,
    row_first_rank,
    first,
    last,
    order,
    r,
    column_scale,
    column_ids,
    column_terms,
    column_thresholds,
    column_pulls,
    column_first_rank,
    ranks_in_use,
    coefficients,
    loss_scale,  # (1): of the loss's reduction, if SCALED
    poison,  # (1) or (N): 0, or NaN for rows whose gradient is not a number
    dx,  # (N, D) out, in the caller's order; (parts, padded N, stride) sums if SPLIT
    parts,  # programs that share a block of rows
    N,
    D,
    stride,
    row_padded,
    column_padded,
    column_blocks,
    poison_stride,
    MODE: tl.constexpr,
    ID_MODE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    POSITIVE: tl.constexpr,
    SIGN: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    FOLDED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    SCALED: tl.constexpr,
    SPLIT: tl.constexpr,  # there is more than one part
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program owns BLOCK_M rows, holds their gradient, and visits the tiles of all columns:
    first those that may hold positives, then the others, without a mask.

    With few rows `parts` programs share them, each with every parts-th tile.
    """
    block = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    rows = block * BLOCK_M + tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    inside = depth < stride
    own = tl.load(
        x + rows.to(tl.int64)[:, None] * stride + depth[None, :], mask=inside[None, :], other=0
    )
    scale = tl.load(row_scale + rows)
    sums = tl.zeros((BLOCK_M, BLOCK_D), scale.dtype)
    # What padding weighs is multiplied with rows of zeros.
    low, width = positive_tiles(first, last, rows, N, BLOCK_N)
    for NEGATIVES in tl.static_range(2):
        count = width
        if NEGATIVES:
            count = column_blocks - width
        for k in range((tl.maximum(count - part, 0) + parts - 1) // parts):
            tile = part + k * parts
            if NEGATIVES:
                tile += tl.where(tile < low, 0, width)
            else:
                tile += low
            columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
            at = r + columns.to(tl.int64)[:, None] * stride + depth[None, :]
            other = tl.load(at, mask=inside[None, :], other=0)
            factor = tl.load(column_scale + columns)
            sim = similarity_of(own, tl.trans(other), scale, factor, MODE)
            weight = pair_weights(
                sim,
                row_terms,
                row_thresholds,
                row_pulls,
                row_first_rank,
                row_ids,
                first,
                last,
                rows,
                row_padded,
                column_terms,
                column_thresholds,
                column_pulls,
                column_first_rank,
                ranks_in_use,
                column_ids,
                columns,
                column_padded,
                coefficients,
                NEGATIVES == 0,
                HAS_ROW,
                HAS_COLUMN,
                FOLDED,
                ID_MODE,
                NEGATIVE,
                POSITIVE,
                SIGN,
                HAS_OFFSET,
                TWO_SIDED,
            )
            weight = as_operand(weight, factor, other.dtype, MODE, WEIGHT_SCALE)
            sums = multiply_add(weight, other, sums, MODE)
    sums = scaled(sums, loss_scale, WEIGHT_SCALE, SCALED and not SPLIT)
    if SPLIT:
        at = (part.to(tl.int64) * row_padded + rows)[:, None] * stride + depth[None, :]
        tl.store(dx + at, sums, mask=inside[None, :])
    else:
        divisor = tl.load(row_norm + rows)
        if NORMALIZE:
            sums = through_normalisation(sums, own.to(sums.dtype), scale, divisor)
        store_gradient(sums, dx, order, divisor, poison, poison_stride, rows, depth, N, D)
