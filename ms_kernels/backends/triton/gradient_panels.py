"""Gradient with respect to rows too deep to be held whole, whose exponentials nobody kept.

A panel of weights, some rows by some columns, goes through a workspace that stays in the L2 cache;
the products of the panels are added in the order of the columns.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.coefficients import (
    margin,
    negative_base,
    negative_scale,
    positive_base,
    positive_scale,
)
from ms_kernels.backends.triton.forms import beyond, circle_factor
from ms_kernels.backends.triton.gradient_sums import as_operand, scaled, store_gradient
from ms_kernels.backends.triton.pairs import positive_tiles, same_class
from ms_kernels.backends.triton.similarity import multiply_add, similarity, through_distance
from ms_kernels.backends.triton.weights import pair_weights


@triton.jit
def store_sums(out, weight, sim, base, scale, coefficients, FORM: tl.constexpr, SIGN: tl.constexpr):
    """What the weights of a tile's pairs of one kind add up to: see `WeightSums`."""
    each, lever = weight, sim - base
    if FORM == "circle":
        u, weight = beyond(sim, base, SIGN), SIGN * weight
        a, lever = circle_factor(u, scale, coefficients), u - margin(coefficients)
        each = tl.where(a > 0, weight / tl.where(a > 0, a, 1), 0)
    tl.store(out, tl.sum(tl.sum(each, 1), 0))
    tl.store(out + 1, tl.sum(tl.sum(tl.where(weight == 0, 0, weight * lever), 1), 0))


@triton.jit(do_not_specialize=["first_row", "first_column", "held", "N", "M"])
def weights_kernel(
    x,
    row_scale,
    row_ids,
    row_terms,
    row_thresholds,  # of ranked rules, as what follows: see `ranked.py`
    row_pulls,
    row_first_rank,
    first,
    last,
    r,
    column_scale,
    column_ids,
    column_terms,
    column_thresholds,
    column_pulls,
    column_first_rank,
    ranks_in_use,
    coefficients,
    panel,  # (rows of the panel, held) out
    sums,  # (programs, 4) out if SUMMED: `WeightSums` of each program's pairs
    first_row,  # of the panel
    first_column,
    held,  # columns of the panel
    N,
    M,
    stride,
    row_padded,
    column_padded,
    MODE: tl.constexpr,
    DISTANCE: tl.constexpr,
    ID_MODE: tl.constexpr,
    NEGATIVE: tl.constexpr,
    POSITIVE: tl.constexpr,
    SIGN: tl.constexpr,
    HAS_OFFSET: tl.constexpr,
    TWO_SIDED: tl.constexpr,
    HAS_ROW: tl.constexpr,
    HAS_COLUMN: tl.constexpr,
    FOLDED: tl.constexpr,
    SUMMED: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program writes the weights of BLOCK_M by BLOCK_N pairs."""
    across = held // BLOCK_N
    block, place = tl.program_id(0) // across, tl.program_id(0) % across
    local = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    rows = first_row + block * BLOCK_M + tl.arange(0, BLOCK_M)
    column = place * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = first_column + column
    low, width = positive_tiles(first, last, rows, N, BLOCK_N)
    tile = first_column // BLOCK_N + place
    weight = tl.zeros((BLOCK_M, BLOCK_N), row_scale.dtype.element_ty)
    sim = similarity(x, row_scale, rows, r, column_scale, columns, stride, MODE, DISTANCE, BLOCK_K)
    for NEGATIVES in tl.static_range(2):
        if ((tile >= low) & (tile < low + width)) == (NEGATIVES == 0):
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
    if SUMMED:
        same = same_class(tl.load(first + rows), tl.load(last + rows), columns)
        own = sums + tl.program_id(0).to(tl.int64) * 4
        # Padding may weigh something on its zeros, of which products are 0.
        present = (rows < N)[:, None] & (columns < M)[None, :]
        pos, neg = tl.where(present & same, weight, 0), tl.where(present & (same == 0), weight, 0)
        base, scale = positive_base(coefficients), positive_scale(coefficients)
        store_sums(own, pos, sim, base, scale, coefficients, POSITIVE, SIGN)
        base, scale = negative_base(coefficients), negative_scale(coefficients)
        store_sums(own + 2, neg, sim, base, scale, coefficients, NEGATIVE, 1)
    weight = through_distance(weight, sim, DISTANCE)
    weight = as_operand(
        weight, tl.load(column_scale + columns), panel.dtype.element_ty, MODE, WEIGHT_SCALE
    )
    tl.store(panel + local[:, None] * held + column[None, :], weight)


@triton.jit(do_not_specialize=["first_row", "first_column", "held", "height", "parts", "N"])
def product_kernel(
    panel,
    r,
    row_norm,
    order,
    loss_scale,  # (1): of the loss's reduction, if SCALED
    poison,
    dx,  # (N, D) in and out, in the caller's order, not yet taken through the normalisation
    partial,  # (parts, height, stride) instead, if SPLIT
    first_row,
    first_column,
    held,
    height,  # rows of the panel
    parts,  # programs that share a block of rows
    N,
    D,
    stride,
    poison_stride,
    MODE: tl.constexpr,
    SPLIT: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    SCALED: tl.constexpr,  # of the last panel of these rows
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program owns BLOCK_M rows of the panel and BLOCK_D of their depth.

    With few rows `parts` programs share them, each with every parts-th tile of columns. Sums go on
    from those of the panel before, so bits do not depend on the size of a panel.
    """
    pieces = tl.cdiv(stride, BLOCK_D)
    part = tl.program_id(0) // pieces % parts
    block = tl.program_id(0) // pieces // parts
    depth = tl.program_id(0) % pieces * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = depth < stride
    first_tile, tiles = first_column // BLOCK_N, held // BLOCK_N
    begin = (part - first_tile % parts + parts) % parts
    local = block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    weights = panel + local[:, None] * held + tl.arange(0, BLOCK_N)[None, :]
    rows = first_row + block * BLOCK_M + tl.arange(0, BLOCK_M)
    sums = tl.zeros((BLOCK_M, BLOCK_D), row_norm.dtype.element_ty)
    if first_column > 0:  # a branch, so that addresses do not occupy registers in the loop
        if SPLIT:
            at = partial + (part.to(tl.int64) * height + local)[:, None] * stride + depth[None, :]
            sums = tl.load(at, mask=inside[None, :], other=0)
        else:
            sample = tl.load(order + rows, mask=rows < N, other=0).to(tl.int64)
            at = dx + sample[:, None] * D + depth[None, :]
            sums = tl.load(at, mask=(rows < N)[:, None] & (depth < D)[None, :], other=0)
        sums *= WEIGHT_SCALE
    for k in range(0, tl.maximum(tiles - begin + parts - 1, 0) // parts):
        place = (begin + k * parts) * BLOCK_N
        columns = first_column + place + tl.arange(0, BLOCK_N)
        other = tl.load(
            r + columns.to(tl.int64)[:, None] * stride + depth[None, :],
            mask=inside[None, :],
            other=0,
        )
        sums = multiply_add(tl.load(weights + place), other, sums, MODE)
    # Sums that go on are what they were: a product with a scale cannot be taken back.
    sums = scaled(sums, loss_scale, WEIGHT_SCALE, SCALED and not SPLIT)
    if SPLIT:
        at = partial + (part.to(tl.int64) * height + local)[:, None] * stride + depth[None, :]
        tl.store(at, sums, mask=inside[None, :])
    else:
        divisor = tl.load(row_norm + rows)
        store_gradient(sums, dx, order, divisor, poison, poison_stride, rows, depth, N, D)
