"""Launches the gradient of rows too deep to be held whole: see `gradient_panels.py`."""

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.gradient_panels import product_kernel, weights_kernel
from ms_kernels.backends.triton.launch_tiles import Launch, Listed


def by_panels(launch: Launch, budget: int, listed: Listed) -> None:
    """Panels of as many rows as keep the GPU busy, and of more if all their tiles fit."""
    rows, product = launch.problem.rows, launch.problem.tiles.product
    across = triton.cdiv(rows.stride, product.block_k) * (launch.group // product.block_m)
    tile_bytes = launch.group**2 * rows.copy.element_size()
    parts = launch.parts(across)
    groups = min(listed.groups, triton.cdiv(launch.BUSY, across))
    held = min(launch.column_blocks, max(1, budget // (groups * tile_bytes)))
    if held == launch.column_blocks:
        groups = min(listed.groups, max(groups, budget // (held * tile_bytes)))
    shape = (groups * launch.group, held * launch.group)
    panel = torch.empty(shape, dtype=rows.copy.dtype, device=rows.device)
    for start in range(0, listed.groups, groups):
        first, height = listed.first + start, min(groups, listed.groups - start) * launch.group
        partial = launch.partial(parts, height) if parts > 1 else launch.dx
        for tile in range(0, launch.column_blocks, held):
            place = (first, tile, min(held, launch.column_blocks - tile))
            _weights(launch, panel, listed, place, height)
            _product(launch, panel, listed, place, height, partial, parts)
        if parts > 1:
            launch.sum_parts(partial, first * launch.group, height)


def _weights(
    launch: Launch, panel: Tensor, listed: Listed, place: tuple[int, int, int], height: int
) -> None:
    problem, rows, tile = launch.problem, launch.problem.rows, launch.problem.tiles.weights
    stash = None if launch.scan is None else launch.scan.stash
    scan_n = problem.tiles.scan.block_n
    across = place[2] * launch.group // tile.block_n
    weights_kernel[(height // tile.block_m * across,)](
        *(rows.copy, rows.scale, *launch.rows_read),
        *(problem.first, problem.last),
        *launch.columns_read,
        listed.tiles,
        listed.counts,
        panel if stash is None else stash,
        panel,
        listed.first,
        *place,
        rows.stride,
        rows.padded,
        problem.columns.padded,
        launch.column_blocks,
        triton.cdiv(problem.columns.count, scan_n),
        STASH=stash is not None,
        SCAN_N=scan_n,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_K=problem.piece(tile.block_k),
        num_warps=tile.warps,
        num_stages=tile.stages,
        **launch.common,
        **launch.pairs,
    )


def _product(
    launch: Launch,
    panel: Tensor,
    listed: Listed,
    place: tuple[int, int, int],
    height: int,
    partial: Tensor,
    parts: int,
) -> None:
    problem, rows, tile = launch.problem, launch.problem.rows, launch.problem.tiles.product
    pieces = triton.cdiv(rows.stride, tile.block_k)
    product_kernel[(height // tile.block_m * pieces * parts,)](
        panel,
        problem.columns.copy,
        rows.norm,
        rows.order,
        listed.tiles,
        listed.counts,
        launch.poison,
        launch.dx,
        partial,
        listed.first,
        *place,
        height,
        parts,
        rows.count,
        rows.width,
        rows.stride,
        launch.column_blocks,
        launch.poison_stride,
        SPLIT=parts > 1,
        BLOCK_M=tile.block_m,
        BLOCK_N=tile.block_n,
        BLOCK_D=tile.block_k,
        num_warps=tile.warps,
        num_stages=tile.stages,
        **launch.common,
    )
