"""Launches the scans: from a Problem to the statistics of its rows."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.negatives import merge_kernel, negative_scan_kernel
from ms_kernels.backends.triton.positives import positive_finish_kernel, positive_scan_kernel
from ms_kernels.backends.triton.problem import BUSY, Problem
from ms_kernels.backends.triton.tiles import owner_of
from ms_kernels.reference import RowStatistics

MOST_TILES = 8


class NegativeScan(NamedTuple):
    hardest: Tensor  # (padded): hardest negative, as what follows in label order
    sums: Tensor
    kept: Tensor  # if counted
    tile_mass: Tensor  # (row blocks, column blocks); empty if exact
    stash: Tensor | None  # exponentials, where they were asked for and fit


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
    sides, others, common = arguments(problem)
    hardest_positive = scan_positives(problem)
    scan = scan_negatives(problem, hardest_positive, workspace_bytes, exact, stash_bytes)

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
        problem.coefficients,
        hardest_positive,
        scan.hardest,
        scan.sums,
        scan.kept,
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
    return Statistics(stats, loss, valid, terms, scan.tile_mass, scan.stash)


def arguments(problem: Problem) -> tuple[Any, Any, Any]:
    """Those of rows, of columns, and the constants that the kernels of this tile share."""
    rows, columns, tile = problem.rows, problem.columns, problem.tiles.scan
    constants = {
        "MODE": problem.mode,
        "ID_MODE": problem.id_mode,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": problem.piece(tile.block_k),
        "num_warps": tile.warps,
        "num_stages": tile.stages,
    }
    others = (columns.copy, columns.scale, columns.ids, problem.coefficients)
    return (rows.copy, rows.scale), others, constants


def scan_positives(problem: Problem) -> Tensor:
    """(padded) hardest positives."""
    rows, tile = problem.rows, problem.tiles.scan
    sides, others, common = arguments(problem)
    hardest_positive = torch.empty(rows.padded, dtype=rows.dtype, device=rows.device)
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
    return hardest_positive


def scan_negatives(
    problem: Problem, bounds: Tensor, workspace_bytes: int, exact: bool, stash_bytes: int = 0
) -> NegativeScan:
    """bounds: hardest positives or, of the other losses, what `family_finish.py` says.

    Goes by launches of as many row blocks as `workspace_bytes` of partial sums allow; each is
    merged into the totals before the next.
    """
    rows, columns, tile = problem.rows, problem.columns, problem.tiles.scan
    new: Any = {"dtype": rows.dtype, "device": rows.device}
    sides, others, common = arguments(problem)
    counted = exact or problem.rules != 0
    row_blocks = triton.cdiv(max(rows.count, 1), tile.block_m)
    column_blocks = triton.cdiv(columns.count, tile.block_n)
    mass_shape = (0, 0) if exact else (row_blocks, max(column_blocks, 1))
    tile_mass = torch.empty(mass_shape, dtype=torch.bfloat16, device=rows.device)
    hardest_negative = torch.full((rows.padded,), -torch.inf, **new)
    negative_sum = torch.zeros(rows.padded, **new)
    neg_kept = torch.zeros(rows.padded if counted else 0, dtype=torch.int32, device=rows.device)
    work = row_blocks * column_blocks // (2 if problem.symmetric else 1)
    tiles = min(MOST_TILES, max(1, work // (4 * BUSY)))
    splits = triton.cdiv(column_blocks, tiles)
    chunk = _chunk(problem, workspace_bytes, row_blocks, splits, counted)
    row_cells, column_cells = chunk * tile.block_m, columns.padded if problem.symmetric else 0
    row_partials = _partials(splits, row_cells, new, counted)
    column_partials = _partials(chunk if problem.symmetric else 0, column_cells, new, counted)
    stash = _stash(problem, row_blocks, column_blocks, stash_bytes)
    flags: Any = {
        "SYMMETRIC": problem.symmetric,
        "BOUNDED": problem.bounded,
        "COUNT": counted,
    }
    for first_block in range(0, row_blocks if column_blocks else 0, chunk):
        blocks = min(chunk, row_blocks - first_block)
        negative_scan_kernel[(blocks * splits,)](
            *sides,
            rows.ids,
            problem.first,
            problem.last,
            *others,
            bounds,
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
            rows.padded,
            RULES=problem.rules,
            EXACT=exact,
            STASH=stash is not None,
            MAY_OVERFLOW=not problem.spec.normalize,
            **flags,
            **common,
        )
        merge_kernel[(row_blocks,)](
            problem.coefficients,
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
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
        )
    return NegativeScan(hardest_negative, negative_sum, neg_kept, tile_mass, stash)


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
