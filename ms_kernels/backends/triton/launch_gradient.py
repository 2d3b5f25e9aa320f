"""Launches the gradient: from a Problem and the terms of its sides to dx."""

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.gradient import gradient_kernel
from ms_kernels.backends.triton.launch_panels import by_panels
from ms_kernels.backends.triton.launch_statistics import Terms
from ms_kernels.backends.triton.launch_tiles import Launch, Listed, Scan
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.tiles import Tile, owner_of


def gradient(
    problem: Problem,
    row_terms: Terms | None,
    column_terms: Terms | None,
    poison: Tensor,
    scan: Scan | None,
    workspace_bytes: int,
) -> Tensor:
    """(N, D) gradient with respect to the rows, through their normalisation.

    poison, (1) or (N), is added: NaN where the gradient is not a number. Lists of tiles, and panels
    of weights, are made for as many rows at a time as `workspace_bytes` of each allow.
    """
    rows, columns = problem.rows, problem.columns
    dx = torch.empty(rows.count, rows.width, dtype=rows.dtype, device=rows.device)
    if rows.count == 0 or rows.width == 0:
        return dx
    if columns.count == 0:
        return dx.zero_()
    launch = Launch(problem, row_terms, column_terms, poison, scan, dx)
    owner = owner_of(problem.tiles, rows.stride)
    whole = False
    for listed in launch.lists(workspace_bytes):
        if owner is not None:
            whole = _rows_whole(launch, owner, listed)
        else:
            by_panels(launch, workspace_bytes, listed)
    if problem.spec.normalize and not whole:
        launch.project()
    return dx


def _rows_whole(launch: Launch, owner: Tile, listed: Listed) -> bool:
    """Whether dx has been taken through the normalisation."""
    problem, rows = launch.problem, launch.problem.rows
    height = listed.groups * launch.group
    parts = launch.parts(launch.group // owner.block_m)
    partial = launch.partial(parts, height) if parts > 1 else launch.dx
    gradient_kernel[(height // owner.block_m * parts,)](
        *(rows.copy, rows.scale, rows.norm, *launch.rows_read),
        *(problem.first, problem.last, rows.order),
        *launch.columns_read,
        listed.tiles,
        listed.counts,
        launch.poison,
        partial,
        listed.first,
        parts,
        rows.count,
        rows.width,
        rows.stride,
        rows.padded,
        problem.columns.padded,
        launch.column_blocks,
        launch.poison_stride,
        NORMALIZE=problem.spec.normalize,
        SPLIT=parts > 1,
        BLOCK_M=owner.block_m,
        BLOCK_N=owner.block_n,
        BLOCK_D=max(16, triton.next_power_of_2(rows.stride)),
        num_warps=owner.warps,
        num_stages=owner.stages,
        **launch.common,
        **launch.pairs,
    )
    if parts > 1:
        launch.sum_parts(partial, listed.first * launch.group, height)
    return parts == 1
