"""Launches the gradient: from a Problem and the terms of its sides to dx."""

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.gradient import gradient_kernel
from ms_kernels.backends.triton.gradient_stash import stashed_gradient_kernel
from ms_kernels.backends.triton.launch_panels import by_panels
from ms_kernels.backends.triton.launch_parts import Launch
from ms_kernels.backends.triton.launch_statistics import Terms
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.backends.triton.tiles import Tile, owner_of


def gradient(
    problem: Problem,
    row_terms: Terms | None,
    column_terms: Terms | None,
    poison: Tensor,
    stash: Tensor | None,
    workspace_bytes: int,
    scale: Tensor | None = None,
) -> Tensor:
    """(N, D) gradient with respect to the rows, through their normalisation.

    poison, (1) or (N): NaN where the gradient is not a number. stash: the exponentials that the
    scan kept. Panels of weights take `workspace_bytes`. scale, (1): of the loss's reduction.
    """
    rows, columns = problem.rows, problem.columns
    dx = torch.empty(rows.count, rows.width, dtype=rows.dtype, device=rows.device)
    if rows.count == 0 or rows.width == 0:
        return dx
    if columns.count == 0:
        return dx.zero_()
    launch = Launch(problem, row_terms, column_terms, poison, scale, dx)
    owner = owner_of(problem.tiles, rows.stride)
    if owner is not None:
        _rows_whole(launch, owner)
    elif stash is not None and problem.tiles.stashed is not None:
        _from_stash(launch, stash, problem.tiles.stashed)
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
        NORMALIZE=problem.spec.normalize,
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
    pieces = triton.cdiv(rows.stride, tile.block_k)
    blocks = triton.cdiv(rows.count, tile.block_m)
    parts = launch.parts(blocks * pieces, blocks)
    out = launch.partial(parts, rows.padded) if parts > 1 else launch.dx
    constants = problem.pair_constants
    folded = constants.pop("FOLDED")
    assert folded
    launch_kernel(
        stashed_gradient_kernel,
        (blocks * parts * pieces,),
        *(rows.copy, rows.scale, rows.norm, rows.ids, launch.row_terms),
        *(problem.first, problem.last, rows.order),
        problem.coefficients,
        stash,
        launch.scale,
        launch.poison,
        out,
        parts,
        rows.count,
        rows.width,
        rows.stride,
        rows.padded,
        blocks,
        triton.cdiv(rows.count, scan.block_n),
        SPLIT=parts > 1,
        SCALED=launch.scaled,
        SCAN_M=scan.block_m,
        SCAN_N=scan.block_n,
        BLOCK_M=tile.block_m,
        BLOCK_D=tile.block_k,
        BLOCK_K=problem.piece(scan.block_k),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **launch.common,
        **constants,
    )
    if parts > 1:
        launch.sum_parts(out, 0)
    else:
        launch.project()
