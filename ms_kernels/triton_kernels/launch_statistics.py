"""Launches the scans: from a Problem to the statistics of its rows."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.reference import RowStatistics
from ms_kernels.triton_kernels.negatives import merge_kernel, negative_scan_kernel
from ms_kernels.triton_kernels.positives import positive_finish_kernel, positive_scan_kernel
from ms_kernels.triton_kernels.problem import BUSY, Problem
from ms_kernels.triton_kernels.tiles import owner_of

MOST_TILES = 8


class Statistics(NamedTuple):
    exact: RowStatistics | None  # in the caller's order, if asked for
    loss: Tensor  # (N) else, in the caller's order
    valid: Tensor  # (N): 1 where an anchor keeps a pair
    terms: Tensor  # (5, padded): what the rows add to weights, for an incoming gradient of 1
    tile_mass: Tensor  # (row blocks, column blocks) of the negative scan; empty if exact
    stash: Tensor | None  # its exponentials, where they were asked for and fit


def statistics(
    problem: Problem, workspace_bytes: int, exact: bool, stash_bytes: int = 0
) -> Statistics:
    """Statistics of each row if `exact`, else its loss and what the gradient needs.

    The negative scan goes by launches of as many row blocks as `workspace_bytes` of partial sums
    allow; each is merged into the totals before the next. Within `stash_bytes` its exponentials are
    kept for the gradient.
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
    mass_shape = (0, 0) if exact else (row_blocks, max(column_blocks, 1))
    tile_mass = torch.empty(mass_shape, dtype=torch.bfloat16, device=rows.device)
    hardest_negative = torch.full((rows.padded,), -torch.inf, **new)
    negative_sum = torch.zeros(rows.padded, **new)
    neg_kept = torch.zeros(rows.padded if exact else 0, dtype=torch.int32, device=rows.device)
    work = row_blocks * column_blocks // (2 if problem.symmetric else 1)
    tiles = min(MOST_TILES, max(1, work // (4 * BUSY)))
    splits = triton.cdiv(column_blocks, tiles)
    chunk = _chunk(problem, workspace_bytes, row_blocks, splits, exact)
    row_cells, column_cells = chunk * tile.block_m, columns.padded if problem.symmetric else 0
    row_partials = _partials(splits, row_cells, new, exact)
    column_partials = _partials(chunk if problem.symmetric else 0, column_cells, new, exact)
    stash = _stash(problem, row_blocks, column_blocks, stash_bytes)
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
            tile_mass if stash is None else stash,
            tile_mass,
            first_block,
            blocks,
            rows.count,
            columns.count,
            rows.stride,
            row_cells,
            column_cells,
            column_blocks,
            tiles,
            STASH=stash is not None,
            MAY_OVERFLOW=not problem.spec.normalize,
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
            tiles,
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
    return Statistics(stats, loss, valid, terms, tile_mass, stash)


def _stash(problem: Problem, row_blocks: int, column_blocks: int, budget: int) -> Tensor | None:
    """Room for the scan's tiles on and above the diagonal, if the gradient gains by it.

    Half rows only, whose weights are rounded as much anyway; and only where the gradient goes by
    panels: a program that holds its rows whole computes similarities as fast as it could read them.
    """
    tile = problem.tiles.scan
    held_whole = owner_of(problem.tiles, problem.rows.stride) is not None
    half = problem.rows.copy.element_size() == 2
    if not (problem.symmetric and problem.bounded and half) or held_whole:
        return None
    ratio = tile.block_n // tile.block_m
    size = sum(column_blocks - i // ratio for i in range(row_blocks)) * tile.block_m * tile.block_n
    if 2 * size > budget:
        return None
    return torch.empty(size, dtype=torch.bfloat16, device=problem.rows.device)


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
