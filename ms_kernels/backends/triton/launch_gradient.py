"""Launches the gradient: from a Problem and the terms of its sides to dx."""

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.gradient import gradient_kernel
from ms_kernels.backends.triton.gradient_stash import (
    positive_weights_kernel,
    stash_weights_kernel,
    stashed_gradient_kernel,
)
from ms_kernels.backends.triton.launch_panels import by_panels
from ms_kernels.backends.triton.launch_parts import Launch
from ms_kernels.backends.triton.launch_statistics import Terms
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.backends.triton.tiles import Tile, owner_of

# Programs that share the tiles with positives of a block of rows: mostly two to four.
POSITIVE_PARTS = 4
# Weights are at most 2, and scales at most 1.
STASHED_FLOAT16_SCALE = 2.0**14


def gradient(
    problem: Problem,
    row_terms: Terms | None,
    column_terms: Terms | None,
    poison: Tensor,
    stash: Tensor | None,
    workspace_bytes: int,
    scale: Tensor | None = None,
    weight_sums: Tensor | None = None,
) -> Tensor:
    """(N, D) gradient with respect to the rows, through their normalisation.

    poison, (1) or (N): NaN where the gradient is not a number. stash: the exponentials that the
    scan kept. Panels of weights take `workspace_bytes`. scale, (1): of the loss's reduction.
    weight_sums: see `Launch`; of a problem without owners.
    """
    rows, columns = problem.rows, problem.columns
    dx = torch.empty(rows.count, rows.width, dtype=rows.dtype, device=rows.device)
    if rows.count == 0 or rows.width == 0:
        return dx
    if columns.count == 0:
        return dx.zero_()
    launch = Launch(problem, row_terms, column_terms, poison, scale, dx, weight_sums)
    owner = owner_of(problem.tiles, rows.stride)
    if stash is not None and problem.tiles.stashed is not None:
        _from_stash(launch, stash, problem.tiles.stashed)
    elif owner is not None:
        _rows_whole(launch, owner)
    else:
        by_panels(launch, workspace_bytes)
    return dx


def _rows_whole(launch: Launch, owner: Tile) -> None:
    problem, rows = launch.problem, launch.problem.rows
    blocks = triton.cdiv(rows.count, owner.block_m)
    column_blocks = triton.cdiv(problem.columns.count, owner.block_n)
    parts = launch.parts(blocks, column_blocks)
    out = launch.partial(parts, rows.padded) if parts > 1 else launch.dx
    launch_kernel(
        gradient_kernel,
        (blocks * parts,),
        *(rows.copy, rows.scale, rows.norm, *launch.rows_read),
        *(problem.first, problem.last, rows.order),
        *launch.columns_read,
        launch.scale,
        launch.poison,
        out,
        parts,
        rows.count,
        rows.width,
        rows.stride,
        rows.padded,
        problem.columns.padded,
        column_blocks,
        launch.poison_stride,
        NORMALIZE=problem.normalizes,
        SPLIT=parts > 1,
        SCALED=launch.scaled,
        BLOCK_M=owner.block_m,
        BLOCK_N=owner.block_n,
        BLOCK_D=max(16, triton.next_power_of_2(rows.stride)),
        num_warps=owner.warps,
        num_stages=owner.stages,
        **launch.common,
        **launch.pairs,
    )
    if parts > 1:
        launch.sum_parts(out, 0)


def _from_stash(launch: Launch, stash: Tensor, tile: Tile) -> None:
    problem, rows = launch.problem, launch.problem.rows
    scan = problem.tiles.scan
    # Of float16 a weight times two scales is small.
    lifted = STASHED_FLOAT16_SCALE if rows.copy.dtype == torch.float16 else 1.0
    column_blocks = triton.cdiv(rows.count, scan.block_n)
    weights = stash.view(rows.copy.dtype) if rows.copy.itemsize == 2 else stash
    constants = problem.pair_constants
    folded = constants.pop("FOLDED")
    assert folded
    row_blocks = triton.cdiv(rows.count, scan.block_m)
    launch_kernel(
        stash_weights_kernel,
        (column_blocks, row_blocks),
        *(rows.scale, launch.row_terms, stash, weights),
        rows.padded,
        column_blocks,
        WEIGHT_SCALE=lifted,
        BLOCK_M=scan.block_m,
        BLOCK_N=scan.block_n,
        num_warps=8,
    )
    launch_kernel(
        positive_weights_kernel,
        (row_blocks * POSITIVE_PARTS,),
        *(rows.copy, rows.scale, rows.ids, launch.row_terms),
        *(problem.first, problem.last),
        problem.coefficients,
        weights,
        rows.count,
        rows.stride,
        rows.padded,
        column_blocks,
        MODE=problem.mode,
        WEIGHT_SCALE=lifted,
        PARTS=POSITIVE_PARTS,
        BLOCK_M=scan.block_m,
        BLOCK_N=scan.block_n,
        BLOCK_K=problem.piece(scan.block_k),
        num_warps=8,
        num_stages=scan.stages,
        **constants,
    )
    block_m, block_n = min(tile.block_m, scan.block_m), min(tile.block_n, *scan[:2])
    pieces = triton.cdiv(rows.stride, tile.block_k)
    blocks = triton.cdiv(rows.count, block_m)
    # Its tiles fill the shared memory of a processor.
    parts = launch.parts(2 * blocks * pieces, triton.cdiv(rows.count, block_n))
    out = launch.partial(parts, rows.padded) if parts > 1 else launch.dx
    launch_kernel(
        stashed_gradient_kernel,
        (blocks * parts * pieces,),
        *(rows.copy, rows.scale, rows.norm, rows.order),
        weights,
        launch.scale,
        launch.poison,
        out,
        parts,
        rows.count,
        rows.width,
        rows.stride,
        rows.padded,
        column_blocks,
        MODE=problem.mode,
        WEIGHT_SCALE=lifted,
        SPLIT=parts > 1,
        SCALED=launch.scaled,
        WHOLE=rows.stride % tile.block_k == 0,
        SCAN_M=scan.block_m,
        SCAN_N=scan.block_n,
        BLOCK_M=block_m,
        BLOCK_N=block_n,
        BLOCK_D=tile.block_k,
        num_warps=tile.warps,
        num_stages=tile.stages,
    )
    if parts > 1:
        launch.sum_parts(out, 0)
    else:
        launch.project()
