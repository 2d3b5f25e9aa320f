"""Gradient with respect to rows too deep to be held whole.

A panel of weights, some rows by some tiles of each one's list, goes through a workspace that stays
in the L2 cache; the products of the panels are added in the order of the lists.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.gradient_sums import as_operand, store_gradient
from ms_kernels.backends.triton.similarity import multiply_add, similarity
from ms_kernels.backends.triton.stash import read_stash, stashed_weights
from ms_kernels.backends.triton.weights import pair_weights


@triton.jit(
    do_not_specialize=[
        "listed",
        "first_group",
        "first_tile",
        "held",
        "column_blocks",
        "scan_columns",
    ]
)
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
    tiles,
    counts,
    stash,  # of the negative scan, if STASH
    panel,  # (rows of the panel, held * GROUP) out: weights of listed tiles, side by side
    listed,  # first block of rows of the list
    first_group,  # of the panel
    first_tile,  # of each list, in the panel
    held,  # tiles of each list in the panel
    stride,
    row_padded,
    column_padded,
    column_blocks,
    scan_columns,
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
    across = held * COLUMN_PARTS
    place = tl.program_id(0) % across
    k = first_tile * COLUMN_PARTS + place
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
        factor = tl.load(column_scale + columns)
        weight = as_operand(weight, factor, panel.dtype.element_ty, MODE, WEIGHT_SCALE)
        at = panel_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
        column = place * BLOCK_N + tl.arange(0, BLOCK_N)
        tl.store(panel + at[:, None] * held * GROUP + column[None, :], weight)


@triton.jit(
    do_not_specialize=[
        "listed",
        "first_group",
        "first_tile",
        "held",
        "height",
        "parts",
        "N",
        "column_blocks",
    ]
)
def product_kernel(
    panel,
    r,
    row_norm,
    order,
    tiles,
    counts,
    poison,
    dx,  # (N, D) in and out, in the caller's order, not yet taken through the normalisation
    partial,  # (parts, height, stride) instead, if SPLIT
    listed,
    first_group,
    first_tile,
    held,
    height,  # rows of the panel
    parts,  # programs that share a block of rows
    N,
    D,
    stride,
    column_blocks,
    poison_stride,
    MODE: tl.constexpr,
    SPLIT: tl.constexpr,
    WEIGHT_SCALE: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program owns BLOCK_M rows of the panel and BLOCK_D of their depth.

    With few rows `parts` programs share them, each with every parts-th tile of the list. Sums go on
    from those of the panel before, so bits do not depend on the size of a panel.
    """
    ROW_PARTS: tl.constexpr = GROUP // BLOCK_M
    TILES: tl.constexpr = GROUP // BLOCK_N  # of one that is listed
    pieces = tl.cdiv(stride, BLOCK_D)
    part = tl.program_id(0) // pieces % parts
    panel_block = tl.program_id(0) // pieces // parts
    group = (first_group + panel_block // ROW_PARTS).to(tl.int64)
    depth = tl.program_id(0) % pieces * BLOCK_D + tl.arange(0, BLOCK_D)
    inside = depth < stride
    own_list = group - listed
    count = tl.load(counts + 2 * own_list + 1)
    present = tl.minimum(count - first_tile, held)
    begin = (part - first_tile % parts + parts) % parts
    own = tl.maximum(present - begin + parts - 1, 0) // parts
    local = panel_block.to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    weights = panel + local[:, None] * held * GROUP + tl.arange(0, BLOCK_N)[None, :]
    rows = group.to(tl.int32) * GROUP + panel_block % ROW_PARTS * BLOCK_M + tl.arange(0, BLOCK_M)
    sums = tl.zeros((BLOCK_M, BLOCK_D), row_norm.dtype.element_ty)
    if first_tile > 0:  # a branch, so that addresses do not occupy registers in the loop
        if SPLIT:
            at = partial + (part.to(tl.int64) * height + local)[:, None] * stride + depth[None, :]
            sums = tl.load(at, mask=inside[None, :], other=0)
        else:
            sample = tl.load(order + rows, mask=rows < N, other=0).to(tl.int64)
            at = dx + sample[:, None] * D + depth[None, :]
            sums = tl.load(at, mask=(rows < N)[:, None] & (depth < D)[None, :], other=0)
        sums *= WEIGHT_SCALE
    for k in range(0, own * TILES):
        place = begin + k // TILES * parts
        tile = tl.load(tiles + own_list * column_blocks + first_tile + place)
        columns = tile * GROUP + k % TILES * BLOCK_N + tl.arange(0, BLOCK_N)
        other = tl.load(
            r + columns.to(tl.int64)[:, None] * stride + depth[None, :],
            mask=inside[None, :],
            other=0,
        )
        weight = tl.load(weights + (place * GROUP + k % TILES * BLOCK_N))
        sums = multiply_add(weight, other, sums, MODE)
    sums *= 1 / WEIGHT_SCALE
    if SPLIT:
        at = partial + (part.to(tl.int64) * height + local)[:, None] * stride + depth[None, :]
        tl.store(at, sums, mask=inside[None, :])
    else:
        divisor = tl.load(row_norm + rows)
        store_gradient(sums, dx, order, divisor, poison, poison_stride, rows, depth, N, D)
