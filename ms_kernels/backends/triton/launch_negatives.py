"""Launches the negative scan and its merge."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.launch import arguments
from ms_kernels.backends.triton.launch_ranked import Lists, no_lists
from ms_kernels.backends.triton.merge import CELLS, merge_kernel
from ms_kernels.backends.triton.negatives import negative_scan_kernel
from ms_kernels.backends.triton.problem import BUSY, Problem
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.backends.triton.tiles import Tile, owner_of

MOST_TILES = 8
# The depth up to which similarities are computed again for the gradient, not kept. On an H200, at
# N = 16,384, scan and gradient so take 0.63 ms at a depth of 128; at 256 1.18, kept 0.86.
RECOMPUTED = 128
DEEPEST_FLOAT16 = 1024
# Anchors of one program of the merge.
MERGED = 32


class NegativeScan(NamedTuple):
    hardest: Tensor  # (padded): hardest negative, as what follows in label order
    peak: Tensor  # what sums refer to; the same tensor where that is no other
    sums: Tensor
    kept: Tensor  # empty if not counted
    stash: Tensor | None  # exponentials, where they were asked for and fit


def has_peak(problem: Problem, exact: bool) -> bool:
    """Whether the hardest negative is told from what the sums refer to: of two-sided mining the
    hardest that may be kept."""
    return refers_to_exponents(problem) or (exact and problem.mining.two_sided)


def refers_to_exponents(problem: Problem) -> bool:
    """Of a circle, whose hardest pair need not have the greatest."""
    return problem.rule.negative == "circle" and not problem.bounded


def is_counted(problem: Problem, exact: bool) -> bool:
    """Whether kept negatives are; of a log-sum-exp it is known anyway whether there are some."""
    return exact or not problem.rule.log_sum


def scan_negatives(
    problem: Problem,
    above: Tensor,  # (padded): kept negatives are above
    below: Tensor | None,  # (padded), of two-sided mining: and below
    lists: Lists | None,  # of a ranked rule: counts of what is reached are added
    workspace_bytes: int,
    exact: bool,
    stash_bytes: int = 0,
) -> NegativeScan:
    """Goes by launches of as many row blocks as `workspace_bytes` of partial sums allow; each is
    merged into the totals before the next. Within `stash_bytes` exponentials are kept for the
    gradient."""
    rows, columns, tile = problem.rows, problem.columns, problem.tiles.scan
    new: Any = {"dtype": rows.dtype, "device": rows.device}
    sides, others, common = arguments(problem)
    counted, peaked = is_counted(problem, exact), has_peak(problem, exact)
    row_blocks = triton.cdiv(max(rows.count, 1), tile.block_m)
    column_blocks = triton.cdiv(columns.count, tile.block_n)
    peak, sums = torch.empty(rows.padded, **new), torch.empty(rows.padded, **new)
    hardest = torch.empty_like(peak) if peaked else peak
    kept = torch.empty(rows.padded if counted else 0, dtype=torch.int32, device=rows.device)
    work = row_blocks * column_blocks // (2 if problem.symmetric else 1)
    tiles = min(MOST_TILES, max(1, work // (4 * BUSY)))
    splits = triton.cdiv(column_blocks, tiles)
    chunk = _chunk(problem, workspace_bytes, row_blocks, splits, counted, peaked)
    row_cells, column_cells = chunk * tile.block_m, columns.padded if problem.symmetric else 0
    row_partials = _partials(splits, row_cells, new, counted, peaked)
    height = chunk if problem.symmetric else 0
    column_partials = _partials(height, column_cells, new, counted, peaked)
    stash = _stash(problem, row_blocks, column_blocks, stash_bytes)
    flags: Any = {
        "SYMMETRIC": problem.symmetric,
        "BOUNDED": problem.bounded,
        "COUNTED": counted,
        "PEAK": peaked,
    }
    ranked = no_lists(above) if lists is None else lists
    for first_block in range(0, row_blocks, chunk):
        blocks = min(chunk, row_blocks - first_block)
        launch_kernel(
            negative_scan_kernel,
            (blocks * splits,),
            *sides,
            rows.ids,
            problem.first,
            problem.last,
            *others,
            above,
            above if below is None else below,
            ranked.thresholds,
            ranked.reached,
            ranked.in_use,
            *row_partials,
            *column_partials,
            sums if stash is None else stash,
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
            NEGATIVE=problem.rule.negative,
            TWO_SIDED=below is not None,
            STASH=stash is not None,
            MAY_OVERFLOW=not problem.spec.normalize,
            **flags,
            **common,
        )
        launch_kernel(
            merge_kernel,
            (rows.padded // MERGED,),
            problem.coefficients,
            *row_partials,
            *column_partials,
            peak,
            sums,
            kept,
            hardest,
            first_block,
            blocks,
            splits,
            row_cells,
            column_cells,
            tiles,
            **flags,
            CIRCLE=refers_to_exponents(problem),
            FIRST=first_block == 0,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK=MERGED,
        )
    return NegativeScan(hardest, peak, sums, kept, stash)


def _stash(problem: Problem, row_blocks: int, column_blocks: int, budget: int) -> Tensor | None:
    """Room for the scan's tiles on and above the diagonal, if the gradient gains by it.

    Half rows only, whose weights are rounded as much anyway; and only deep ones: a program that
    holds shallow rows whole computes similarities as fast as it could read them.
    """
    tile = problem.tiles.scan
    owner = owner_of(problem.tiles, problem.rows.stride)
    held_whole = owner is not None and owner.block_k <= RECOMPUTED
    half = problem.rows.copy.element_size() == 2
    # Times the scales of two such rows float16 weights are too small.
    if problem.rows.copy.dtype == torch.float16 and problem.rows.stride > DEEPEST_FLOAT16:
        return None
    # With one bound on each side the lower one tells who keeps a pair: see `stash.py`.
    known = problem.folded and not problem.mining.two_sided
    if not (problem.symmetric and known and half) or held_whole or problem.tiles.stashed is None:
        return None
    size = stash_size(tile, row_blocks, column_blocks)
    if 2 * size > budget:
        return None
    return torch.empty(size, dtype=torch.bfloat16, device=problem.rows.device)


def stash_size(tile: Tile, row_blocks: int, column_blocks: int) -> int:
    """Exponentials of the tiles from the diagonal on."""
    starts = (i * tile.block_m // tile.block_n for i in range(row_blocks))
    return sum(column_blocks - start for start in starts) * tile.block_m * tile.block_n


def _chunk(
    problem: Problem, budget: int, row_blocks: int, splits: int, counted: bool, peaked: bool
) -> int:
    """Row blocks of one launch of the negative scan: their partial sums fit the budget, but for
    those of as many as are merged at once."""
    number = problem.rows.dtype.itemsize
    cell = (3 if peaked else 2) * number + (4 if counted else 0)
    cells = splits * problem.tiles.scan.block_m
    if problem.symmetric:
        cells += problem.columns.padded
    at_once: int = CELLS.value
    fitting = budget // max(1, cells * cell) // at_once * at_once
    return min(row_blocks, max(at_once, fitting))


def _partials(
    height: int, width: int, new: Any, counted: bool, peaked: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    shape = (height, width)
    return (
        torch.empty(shape, **new),
        torch.empty(shape, **new),
        torch.empty(shape if counted else (0, 0), dtype=torch.int32, device=new["device"]),
        torch.empty(shape if peaked else (0, 0), **new),
    )
