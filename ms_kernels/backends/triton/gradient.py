"""Gradient with respect to the rows: dx_i = sum_j W_ij u_j, by programs that hold rows whole.

So up to a depth that fits registers; beyond, see `gradient_panels.py`.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.gradient_sums import as_operand, store_gradient
from ms_kernels.backends.triton.rows import through_normalisation
from ms_kernels.backends.triton.similarity import multiply_add, similarity_of
from ms_kernels.backends.triton.weights import pair_weights


@triton.jit(do_not_specialize=["listed", "parts", "N", "column_blocks"])
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
    tiles,
    counts,
    poison,  # (1) or (N): 0, or NaN for rows whose gradient is not a number
    dx,  # (N, D) out, in the caller's order; (parts, rows, stride) sums if SPLIT
    listed,  # first block of rows of the list and of this launch
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
    ONE_FACTOR: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    BOUNDED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    SPLIT: tl.constexpr,  # there is more than one part
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program owns BLOCK_M rows, holds their gradient, and reads each listed tile once.

    With few rows `parts` programs share them, each with every parts-th tile of the list.
    """
    block = tl.program_id(0) // parts
    part = tl.program_id(0) % parts
    start = listed * GROUP + block * BLOCK_M
    rows = start + tl.arange(0, BLOCK_M)
    depth = tl.arange(0, BLOCK_D)
    inside = depth < stride
    own = tl.load(
        x + rows.to(tl.int64)[:, None] * stride + depth[None, :], mask=inside[None, :], other=0
    )
    scale = tl.load(row_scale + rows)
    sums = tl.zeros((BLOCK_M, BLOCK_D), scale.dtype)
    own_list = (start // GROUP - listed).to(tl.int64)
    positives, count = tl.load(counts + 2 * own_list), tl.load(counts + 2 * own_list + 1)
    TILES: tl.constexpr = GROUP // BLOCK_N  # of one that is listed
    for NEGATIVES in tl.static_range(2):
        begin = positives * NEGATIVES + part
        end = positives + (count - positives) * NEGATIVES
        for k in range((tl.maximum(end - begin, 0) + parts - 1) // parts * TILES):
            tile = tl.load(tiles + own_list * column_blocks + begin + k // TILES * parts)
            columns = tile * GROUP + k % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
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
                BOUNDED,
                ID_MODE,
                NEGATIVE,
                POSITIVE,
                SIGN,
                HAS_OFFSET,
                ONE_FACTOR,
                TWO_SIDED,
            )
            weight = as_operand(weight, factor, other.dtype, MODE, WEIGHT_SCALE)
            sums = multiply_add(weight, other, sums, MODE)
    sums *= 1 / WEIGHT_SCALE
    if SPLIT:
        blocks = tl.num_programs(0) // parts
        at = (part * blocks + block).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        tl.store(dx + at[:, None] * stride + depth[None, :], sums, mask=inside[None, :])
    else:
        divisor = tl.load(row_norm + rows)
        if NORMALIZE:
            sums = through_normalisation(sums, own.to(sums.dtype), scale, divisor)
        store_gradient(sums, dx, order, divisor, poison, poison_stride, rows, depth, N, D)
