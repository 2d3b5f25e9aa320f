"""Launches the gradient of rows too deep to be held whole: see `gradient_panels.py`."""

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.gradient_panels import product_kernel, weights_kernel
from ms_kernels.backends.triton.launch_parts import Launch
from ms_kernels.backends.triton.tape import launch_kernel


def by_panels(launch: Launch, budget: int) -> None:
    """Panels of as many rows as keep the GPU busy, and of more if all their columns fit."""
    rows, columns, tiles = launch.problem.rows, launch.problem.columns, launch.problem.tiles
    block = max(tiles.weights.block_m, tiles.weights.block_n, *tiles.product[:2])
    row_blocks = triton.cdiv(rows.count, block)
    column_blocks = triton.cdiv(columns.count, block)
    across = triton.cdiv(rows.stride, tiles.product.block_k) * (block // tiles.product.block_m)
    block_bytes = block**2 * rows.copy.element_size()
    parts = launch.parts(row_blocks * across, column_blocks)
    height = min(row_blocks, triton.cdiv(launch.BUSY, across))
    held = min(column_blocks, max(1, budget // (height * block_bytes)))
    if held == column_blocks:
        height = min(row_blocks, max(height, budget // (held * block_bytes)))
    panel = torch.empty(height * block, held * block, dtype=rows.copy.dtype, device=rows.device)
    for start in range(0, row_blocks, height):
        panel_rows = min(height, row_blocks - start) * block
        partial = launch.partial(parts, panel_rows) if parts > 1 else launch.dx
        for first in range(0, column_blocks, held):
            place = (start * block, first * block, min(held, column_blocks - first) * block)
            _weights(launch, panel, place, panel_rows)
            last = first + held >= column_blocks
            _product(launch, panel, place, panel_rows, partial, parts, last)
        if parts > 1:
            launch.sum_parts(partial, start * block)
    if parts == 1:
        launch.project()


# Of a panel: its first row, its first column, its columns.
Place = tuple[int, int, int]


def _weights(launch: Launch, panel: Tensor, place: Place, height: int) -> None:
    problem, rows, tile = launch.problem, launch.problem.rows, launch.problem.tiles.weights
    programs = height // tile.block_m * (place[2] // tile.block_n)
    sums = rows.norm  # else never written
    if launch.weight_sums is not None:
        sums = torch.empty(programs, len(launch.weight_sums), dtype=rows.dtype, device=rows.device)
    launch_kernel(
        weights_kernel,
        (programs,),
        *(rows.copy, rows.scale, *launch.rows_read),
        *(problem.first, problem.last),
        *launch.columns_read,
        panel,
        sums,
        *place,
        rows.count,
        problem.columns.count,
        rows.stride,
        rows.padded,
        problem.columns.padded,
        SUMMED=launch.weight_sums is not None,
        DISTANCE=problem.distance,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=problem.piece(tile.block_k),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **launch.common,
        **launch.pairs,
    )
    if launch.weight_sums is not None:
        launch.weight_sums += sums.sum(0, dtype=torch.float64)


def _product(
    launch: Launch,
    panel: Tensor,
    place: Place,
    height: int,
    partial: Tensor,
    parts: int,
    last: bool,
) -> None:
    problem, rows, tile = launch.problem, launch.problem.rows, launch.problem.tiles.product
    pieces = triton.cdiv(rows.stride, tile.block_k)
    launch_kernel(
        product_kernel,
        (height // tile.block_m * pieces * parts,),
        panel,
        problem.columns.copy,
        rows.norm,
        rows.order,
        launch.scale,
        launch.poison,
        launch.dx,
        partial,
        *place,
        height,
        parts,
        rows.count,
        rows.width,
        rows.stride,
        launch.poison_stride,
        SPLIT=parts > 1,
        SCALED=launch.scaled and last,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=tile.block_k,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **launch.common,
    )
