"""Launches the gradient: from a Problem and the terms of its sides to dx."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.backends.interface import Term
from ms_kernels.triton_kernels.gradient import gradient_kernel, product_kernel, weights_kernel
from ms_kernels.triton_kernels.problem import Problem, Rows, rows_at_once
from ms_kernels.triton_kernels.rows import project_kernel
from ms_kernels.triton_kernels.tile_list import tile_list_kernel
from ms_kernels.triton_kernels.tiles import owner_of
from ms_kernels.triton_kernels.weights import read_terms_kernel

# Weights are at most 2 in absolute value; this lifts them into the range of float16.
FLOAT16_SCALE = 4096.0


class Scan(NamedTuple):
    """What a negative scan left for the gradient."""

    tile_mass: Tensor
    tolerance: Tensor  # (1): weight that a row may lose
    stash: Tensor | None
    transposed: bool  # the scan's rows are this gradient's columns


def read_terms(side: Rows, term: Term, problem: Problem, largest: Tensor) -> Tensor:
    """Terms of one side from the statistics and incoming gradient of its rows."""
    terms = torch.empty(5, side.padded, dtype=side.dtype, device=side.device)
    stats = term.stats
    arrays = (stats.hardest_positive, stats.hardest_negative, stats.pos_lse, stats.neg_lse)
    read_terms_kernel[(triton.cdiv(side.padded, 256),)](
        *(a.contiguous() for a in arrays),
        term.dloss.contiguous(),
        side.order,
        problem.options,
        largest,
        terms,
        side.count,
        side.padded,
        BLOCK=256,
    )
    return terms


def gradient(
    problem: Problem,
    row_terms: Tensor | None,
    column_terms: Tensor | None,
    poison: Tensor,
    scan: Scan | None,
    workspace_bytes: int,
) -> Tensor:
    """(N, D) gradient with respect to the rows, through their normalisation.

    poison, (1) or (N), is added: NaN where the gradient is not a number.
    """
    rows, columns = problem.rows, problem.columns
    dx = torch.empty(rows.count, rows.width, dtype=rows.dtype, device=rows.device)
    if rows.count == 0 or rows.width == 0:
        return dx
    if columns.count == 0:
        return dx.zero_()
    flags: Any = {
        "ID_MODE": problem.id_mode,
        "HAS_ROW": row_terms is not None,
        "HAS_COLUMN": column_terms is not None,
        "BOUNDED": problem.bounded,
    }
    given = row_terms if row_terms is not None else column_terms
    assert given is not None
    # What is absent is never read; one of both is there.
    row_terms = given if row_terms is None else row_terms
    column_terms = given if column_terms is None else column_terms
    tiles, counts = _tile_list(problem, row_terms, column_terms, scan, flags)
    group = problem.tiles.scan.block_m
    lift = FLOAT16_SCALE if rows.copy.dtype == torch.float16 else 1.0
    shared: Any = {"MODE": problem.mode, "WEIGHT_SCALE": lift, "GROUP": group}
    sides = (
        *(rows.ids, row_terms, problem.first, problem.last),
        *(columns.copy, columns.scale, columns.ids, column_terms),
        *(problem.options, tiles, counts),
    )
    poison_stride = 0 if poison.numel() == 1 else 1
    owner = owner_of(problem.tiles, rows.stride)
    if owner is not None:
        x, scale, norm = rows.copy, rows.scale, rows.norm
        ids, terms, first, last, *others = sides
        gradient_kernel[(triton.cdiv(rows.count, owner.block_m),)](
            *(x, scale, norm, ids, terms, first, last, rows.order),
            *others,
            poison,
            dx,
            rows.count,
            rows.width,
            rows.stride,
            rows.padded,
            columns.padded,
            tiles.shape[1],
            poison_stride,
            NORMALIZE=problem.spec.normalize,
            BLOCK_M=owner.block_m,
            BLOCK_N=owner.block_n,
            BLOCK_D=max(16, triton.next_power_of_2(rows.stride)),
            num_warps=owner.warps,
            num_stages=owner.stages,
            **shared,
            **flags,
        )
        return dx

    stash = None if scan is None else scan.stash
    weights, product = problem.tiles.weights, problem.tiles.product
    width = tiles.shape[1] * group
    groups = triton.cdiv(rows.count, group)
    size = width * group * rows.copy.element_size()
    panel_groups = min(groups, max(1, workspace_bytes // size))
    panel = torch.empty(panel_groups * group, width, dtype=rows.copy.dtype, device=rows.device)
    for first_group in range(0, groups, panel_groups):
        present = min(panel_groups, groups - first_group)
        across = width // weights.block_n
        weights_kernel[(present * group // weights.block_m * across,)](
            rows.copy,
            rows.scale,
            *sides,
            panel if stash is None else stash,
            panel,
            first_group,
            rows.stride,
            rows.padded,
            columns.padded,
            tiles.shape[1],
            triton.cdiv(columns.count, problem.tiles.scan.block_n),
            STASH=stash is not None,
            SCAN_N=problem.tiles.scan.block_n,
            BLOCK_M=weights.block_m,
            BLOCK_N=weights.block_n,
            BLOCK_K=problem.piece(weights.block_k),
            num_warps=weights.warps,
            num_stages=weights.stages,
            **shared,
            **flags,
        )
        pieces = triton.cdiv(rows.stride, product.block_k)
        product_kernel[(present * group // product.block_m * pieces,)](
            panel,
            columns.copy,
            rows.norm,
            rows.order,
            tiles,
            counts,
            poison,
            dx,
            first_group,
            rows.count,
            rows.width,
            rows.stride,
            tiles.shape[1],
            poison_stride,
            BLOCK_M=product.block_m,
            BLOCK_N=product.block_n,
            BLOCK_D=product.block_k,
            num_warps=product.warps,
            num_stages=product.stages,
            **shared,
        )
    if problem.spec.normalize:
        height, width = rows_at_once(rows.width)
        project_kernel[(triton.cdiv(rows.count, height),)](
            dx,
            rows.copy,
            rows.scale,
            rows.norm,
            rows.order,
            rows.count,
            rows.width,
            rows.stride,
            ROWS=height,
            BLOCK_D=width,
        )
    return dx


def _tile_list(
    problem: Problem,
    row_terms: Tensor,
    column_terms: Tensor,
    scan: Scan | None,
    flags: Any,
) -> tuple[Tensor, Tensor]:
    rows, columns, tile = problem.rows, problem.columns, problem.tiles.scan
    group = tile.block_m
    blocks, column_blocks = (triton.cdiv(side.count, group) for side in (rows, columns))
    tiles = torch.empty(blocks, column_blocks, dtype=torch.int32, device=rows.device)
    counts = torch.empty(blocks, 2, dtype=torch.int32, device=rows.device)
    tile_list_kernel[(blocks,)](
        problem.first,
        problem.last,
        row_terms if scan is None else scan.tile_mass,
        row_terms,
        column_terms,
        row_terms if scan is None else scan.tolerance,
        tiles,
        counts,
        rows.count,
        columns.count,
        rows.padded,
        columns.padded,
        0 if scan is None else scan.tile_mass.shape[1],
        column_blocks,
        HAS_MASS=scan is not None,
        HAS_ROW=flags["HAS_ROW"],
        HAS_COLUMN=flags["HAS_COLUMN"],
        SYMMETRIC=problem.symmetric,
        TRANSPOSED=scan is not None and scan.transposed,
        GROUP=group,
        SCAN_N=tile.block_n,
        BLOCK=32,
    )
    return tiles, counts
