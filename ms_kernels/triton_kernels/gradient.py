"""Gradient with respect to the rows: dx_i = sum_j W_ij u_j, each row owned by one program.

Up to a depth that fits registers one kernel does it all (`gradient_kernel`). Beyond, a panel of
weights goes through a workspace that stays in the L2 cache (`weights_kernel`, `product_kernel`).
"""

import triton
import triton.language as tl

from ms_kernels.triton_kernels.rows import through_normalisation
from ms_kernels.triton_kernels.similarity import multiply_add, similarity, similarity_of
from ms_kernels.triton_kernels.stash import read_stash, stashed_weights
from ms_kernels.triton_kernels.weights import pair_weights


@triton.jit
def as_operand(weight, column_scale, like, WEIGHT_SCALE: tl.constexpr):
    """Weights of the copies' rows; WEIGHT_SCALE lifts them into the range of float16."""
    return (weight * (column_scale[None, :] * WEIGHT_SCALE)).to(like)


@triton.jit
def gradient_kernel(
    x,
    row_scale,
    row_norm,
    row_ids,
    row_terms,
    first,
    last,
    order,
    r,
    column_scale,
    column_ids,
    column_terms,
    options,
    tiles,
    counts,
    poison,  # (1) or (N): 0, or NaN for rows whose gradient is not a number
    dx,  # (N, D) out, in the caller's order
    listed,  # first block of rows of the list and of this launch
    N,
    D,
    stride,
    row_padded,
    column_padded,
    column_blocks,
    poison_stride,
    MODE: tl.constexpr,
    ID_MODE: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    BOUNDED: tl.constexpr,
    NORMALIZE: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program owns BLOCK_M rows, holds their gradient, and reads each listed tile once."""
    start = listed * GROUP + tl.program_id(0) * BLOCK_M
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
    PARTS: tl.constexpr = GROUP // BLOCK_N
    for NEGATIVES in tl.static_range(2):
        begin = positives * NEGATIVES
        end = positives + (count - positives) * NEGATIVES
        for k in range(begin * PARTS, end * PARTS):
            tile = tl.load(tiles + own_list * column_blocks + k // PARTS)
            columns = tile * GROUP + k % PARTS * BLOCK_N + tl.arange(0, BLOCK_N)
            at = r + columns.to(tl.int64)[:, None] * stride + depth[None, :]
            other = tl.load(at, mask=inside[None, :], other=0)
            factor = tl.load(column_scale + columns)
            sim = similarity_of(own, tl.trans(other), scale, factor, MODE)
            weight = pair_weights(
                sim,
                row_terms,
                row_ids,
                first,
                last,
                rows,
                row_padded,
                column_terms,
                column_ids,
                columns,
                column_padded,
                options,
                NEGATIVES == 0,
                HAS_ROW,
                HAS_COLUMN,
                BOUNDED,
                ID_MODE,
            )
            weight = as_operand(weight, factor, other.dtype, WEIGHT_SCALE)
            sums = multiply_add(weight, other, sums, MODE)
    sums *= 1 / WEIGHT_SCALE
    divisor = tl.load(row_norm + rows)
    if NORMALIZE:
        sums = through_normalisation(sums, own.to(sums.dtype), scale, divisor)
    present = rows < N
    at = tl.load(order + rows, mask=present, other=0).to(tl.int64)
    nan = tl.load(poison + at * poison_stride, mask=present, other=0)
    nan += tl.where(divisor == divisor, 0, divisor)
    tl.store(
        dx + at[:, None] * D + depth[None, :],
        sums + nan[:, None],
        mask=present[:, None] & (depth < D)[None, :],
    )


@triton.jit
def weights_kernel(
    x,
    row_scale,
    row_ids,
    row_terms,
    first,
    last,
    r,
    column_scale,
    column_ids,
    column_terms,
    options,
    tiles,
    counts,
    stash,  # of the negative scan, if STASH
    panel,  # (rows of the panel, column_blocks * GROUP) out: weights of listed tiles, side by side
    listed,  # first block of rows of the list
    first_group,  # of the panel
    stride,
    row_padded,
    column_padded,
    column_blocks,
    scan_columns,
    MODE: tl.constexpr,
    ID_MODE: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    BOUNDED: tl.constexpr,
    STASH: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    SCAN_N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program writes the weights of BLOCK_M by BLOCK_N pairs of one listed tile."""
    ROW_PARTS: tl.constexpr = GROUP // BLOCK_M
    COLUMN_PARTS: tl.constexpr = GROUP // BLOCK_N
    across = column_blocks * COLUMN_PARTS
    k = tl.program_id(0) % across
    panel_block = tl.program_id(0) // across
    group = (first_group + panel_block // ROW_PARTS).to(tl.int64)
    own_list = group - listed
    positives, count = tl.load(counts + 2 * own_list), tl.load(counts + 2 * own_list + 1)
    if k < count * COLUMN_PARTS:
        rows = (
            group.to(tl.int32) * GROUP + panel_block % ROW_PARTS * BLOCK_M + tl.arange(0, BLOCK_M)
        )
        tile = tl.load(tiles + own_list * column_blocks + k // COLUMN_PARTS)
        columns = tile * GROUP + k % COLUMN_PARTS * BLOCK_N + tl.arange(0, BLOCK_N)
        weight = tl.zeros((BLOCK_M, BLOCK_N), row_scale.dtype.element_ty)
        for NEGATIVES in tl.static_range(2):
            if (k >= positives * COLUMN_PARTS) == (NEGATIVES == 1):
                if STASH and NEGATIVES == 1:
                    if tile < group:
                        kept = read_stash(stash, rows, columns, scan_columns, True, GROUP, SCAN_N)
                    else:
                        kept = read_stash(stash, rows, columns, scan_columns, False, GROUP, SCAN_N)
                    weight = stashed_weights(
                        kept, row_terms, rows, row_padded, column_terms, columns, column_padded
                    )
                else:
                    sim = similarity(
                        x, row_scale, rows, r, column_scale, columns, stride, MODE, BLOCK_K
                    )
                    weight = pair_weights(
                        sim,
                        row_terms,
                        row_ids,
                        first,
                        last,
                        rows,
                        row_padded,
                        column_terms,
                        column_ids,
                        columns,
                        column_padded,
                        options,
                        NEGATIVES == 0,
                        HAS_ROW,
                        HAS_COLUMN,
                        BOUNDED,
                        ID_MODE,
                    )
        factor = tl.load(column_scale + columns)
        weight = as_operand(weight, factor, panel.dtype.element_ty, WEIGHT_SCALE)
        at = panel_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        place = k * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(panel + at[:, None] * column_blocks * GROUP + place[None, :], weight)


@triton.jit
def product_kernel(
    panel,
    r,
    row_norm,
    order,
    tiles,
    counts,
    poison,
    dx,  # (N, D) out, in the caller's order, not yet taken through the normalisation
    listed,
    first_group,
    N,
    D,
    stride,
    column_blocks,
    poison_stride,
    MODE: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program owns BLOCK_M rows of the panel and BLOCK_D of their depth."""
    ROW_PARTS: tl.constexpr = GROUP // BLOCK_M
    PARTS: tl.constexpr = GROUP // BLOCK_N
    pieces = tl.cdiv(stride, BLOCK_D)
    panel_block = tl.program_id(0) // pieces
    group = (first_group + panel_block // ROW_PARTS).to(tl.int64)
    rows = group.to(tl.int32) * GROUP + panel_block % ROW_PARTS * BLOCK_M + tl.arange(0, BLOCK_M)
    depth = tl.program_id(0) % pieces * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = depth < stride
    own_list = group - listed
    count = tl.load(counts + 2 * own_list + 1)
    at = panel_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    weights = panel + at[:, None] * column_blocks * GROUP + tl.arange(0, BLOCK_N)[None, :]
    sums = tl.zeros((BLOCK_M, BLOCK_D), row_norm.dtype.element_ty)
    for k in range(0, count * PARTS):
        tile = tl.load(tiles + own_list * column_blocks + k // PARTS)
        columns = tile * GROUP + k % PARTS * BLOCK_N + tl.arange(0, BLOCK_N)
        other = tl.load(
            r + columns.to(tl.int64)[:, None] * stride + depth[None, :],
            mask=inside[None, :],
            other=0,
        )
        sums = multiply_add(tl.load(weights + k * BLOCK_N), other, sums, MODE)
    present = rows < N
    sample = tl.load(order + rows, mask=present, other=0).to(tl.int64)
    divisor = tl.load(row_norm + rows)
    nan = tl.load(poison + sample * poison_stride, mask=present, other=0)
    nan += tl.where(divisor == divisor, 0, divisor)
    tl.store(
        dx + sample[:, None] * D + depth[None, :],
        sums * (1 / WEIGHT_SCALE) + nan[:, None],
        mask=present[:, None] & (depth < D)[None, :],
    )
