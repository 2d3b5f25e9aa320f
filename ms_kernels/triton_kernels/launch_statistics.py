"""Launches the scans: from a Problem to the statistics of its rows."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.reference import RowStatistics
from ms_kernels.triton_kernels.problem import Problem
from ms_kernels.triton_kernels.statistics import (
    merge_kernel,
    negative_scan_kernel,
    positive_finish_kernel,
    positive_scan_kernel,
)

# Programs that keep a large GPU busy several times over.
MANY_PROGRAMS = 1056
MOST_TILES = 8


class Statistics(NamedTuple):
    exact: RowStatistics | None  # in the caller's order, if asked for
    loss: Tensor  # (N) else, in the caller's order
    valid: Tensor  # (N): 1 where an anchor keeps a pair
    terms: Tensor  # (5, padded): what the rows add to weights, for an incoming gradient of 1
    tile_mass: Tensor  # (row blocks, column blocks) of the negative scan


def statistics(problem: Problem, workspace_bytes: int, exact: bool) -> Statistics:
    """Statistics of each row if `exact`, else its loss and what the gradient needs.

    The negative scan goes by launches of as many row blocks as `workspace_bytes` of partial sums
    allow; each is merged into the totals before the next.
    """
    rows, columns, tile = problem.rows, problem.columns, problem.tiles.scan
    new: Any = {"dtype": rows.dtype, "device": rows.device}
    sides = (rows.copy, rows.scale)
    others = (columns.copy, columns.scale, columns.ids, problem.options)
    shape = {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n}
    common: Any = {
        "MODE": problem.mode,
        "ID_MODE": problem.id_mode,
        "BLOCK_K": problem.piece(tile.block_k),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
        **shape,
    }
    hardest_positive = torch.empty(rows.padded, **new)
    row_blocks = triton.cdiv(max(rows.count, 1), tile.block_m)
    positive_scan_kernel[(rows.padded // tile.block_m,)](
        *sides,
        rows.ids,
        problem.first,
        problem.last,
        *others,
        hardest_positive,
        rows.count,
        rows.stride,
        **common,
    )

    column_blocks = triton.cdiv(columns.count, tile.block_n)
    tile_mass = torch.empty(row_blocks, max(column_blocks, 1), **new)
    hardest_negative = torch.full((rows.padded,), -torch.inf, **new)
    negative_sum = torch.zeros(rows.padded, **new)
    neg_kept = torch.zeros(rows.padded if exact else 0, dtype=torch.int32, device=rows.device)
    work = row_blocks * column_blocks // (2 if problem.symmetric else 1)
    tiles = min(MOST_TILES, max(1, work // MANY_PROGRAMS))
    splits = triton.cdiv(column_blocks, tiles)
    chunk = _chunk(problem, workspace_bytes, row_blocks, splits, exact)
    row_cells, column_cells = chunk * tile.block_m, columns.padded if problem.symmetric else 0
    row_partials = _partials(splits, row_cells, new, exact)
    column_partials = _partials(chunk if problem.symmetric else 0, column_cells, new, exact)
    flags: Any = {"SYMMETRIC": problem.symmetric, "BOUNDED": problem.bounded, "EXACT": exact}
    for first_block in range(0, row_blocks if column_blocks else 0, chunk):
        blocks = min(chunk, row_blocks - first_block)
        negative_scan_kernel[(blocks * splits,)](
            *sides,
            rows.ids,
            problem.first,
            problem.last,
            *others,
            hardest_positive,
            *row_partials,
            *column_partials,
            tile_mass,
            first_block,
            blocks,
            rows.count,
            columns.count,
            rows.stride,
            row_cells,
            column_cells,
            column_blocks,
            MAY_OVERFLOW=not problem.spec.normalize,
            TILES=tiles,
            **flags,
            **common,
        )
        merge_kernel[(row_blocks,)](
            problem.options,
            *row_partials,
            *column_partials,
            hardest_negative,
            negative_sum,
            neg_kept,
            first_block,
            blocks,
            splits,
            row_cells,
            column_cells,
            TILES=tiles,
            **flags,
            **shape,
        )

    exact_count, loss_count = (rows.count, 0) if exact else (0, rows.count)
    floats = [torch.empty(exact_count, **new) for _ in range(4)]
    integer: Any = {"dtype": torch.int64, "device": rows.device}
    counts = [torch.empty(exact_count, **integer) for _ in range(2)]
    loss, valid = torch.empty(loss_count, **new), torch.empty(loss_count, **integer)
    terms = torch.empty(5, 0 if exact else rows.padded, **new)
    positive_finish_kernel[(rows.padded // tile.block_m,)](
        *sides,
        rows.norm,
        rows.ids,
        problem.first,
        problem.last,
        rows.order,
        *others[:3],
        columns.poisoned,
        problem.options,
        hardest_positive,
        hardest_negative,
        negative_sum,
        neg_kept,
        terms,
        *floats,
        *counts,
        loss,
        valid,
        rows.count,
        columns.count,
        rows.stride,
        rows.padded,
        BOUNDED=problem.bounded,
        EXACT=exact,
        **common,
    )
    stats = RowStatistics(*floats, *counts) if exact else None
    return Statistics(stats, loss, valid, terms, tile_mass)


def _chunk(problem: Problem, budget: int, row_blocks: int, splits: int, exact: bool) -> int:
    """Row blocks of one launch of the negative scan: their partial sums fit the budget."""
    cell = 2 * problem.rows.scale.element_size() + (4 if exact else 0)
    cells = splits * problem.tiles.scan.block_m
    if problem.symmetric:
        cells += problem.columns.padded
    return min(row_blocks, max(1, budget // max(1, cells * cell)))


def _partials(height: int, width: int, new: Any, exact: bool) -> tuple[Tensor, Tensor, Tensor]:
    shape = (height, width)
    return (
        torch.empty(shape, **new),
        torch.empty(shape, **new),
        torch.empty(shape if exact else (0, 0), dtype=torch.int32, device=new["device"]),
    )
