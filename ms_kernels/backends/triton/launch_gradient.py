"""Launches the gradient: from a Problem and the terms of its sides to dx."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.backends.interface import Term
from ms_kernels.backends.triton.gradient import gradient_kernel
from ms_kernels.backends.triton.gradient_panels import product_kernel, weights_kernel
from ms_kernels.backends.triton.gradient_sums import sum_parts_kernel
from ms_kernels.backends.triton.problem import BUSY, Problem, Rows, rows_at_once
from ms_kernels.backends.triton.rows import project_kernel
from ms_kernels.backends.triton.tile_list import tile_list_kernel
from ms_kernels.backends.triton.tiles import Tile, owner_of
from ms_kernels.backends.triton.weights import read_terms_kernel

# Weights are at most 2 in absolute value; this lifts them into the range of float16.
FLOAT16_SCALE = 4096.0


class Scan(NamedTuple):
    """What a negative scan left for the gradient."""

    tile_mass: Tensor
    tolerance: Tensor  # (1): weight that a row may lose
    stash: Tensor | None
    transposed: bool  # the scan's rows are this gradient's columns


class Listed(NamedTuple):
    """Which tiles some groups of rows must visit; see `tile_list.py`."""

    first: int  # group
    groups: int
    tiles: Tensor  # (groups, column blocks)
    counts: Tensor  # (groups, 2)


def read_terms(side: Rows, term: Term, problem: Problem) -> Tensor:
    """Terms of one side from the statistics and incoming gradient of its rows."""
    terms = torch.empty(5, side.padded, dtype=side.dtype, device=side.device)
    stats = term.stats
    arrays = (stats.hardest_positive, stats.hardest_negative, stats.pos_lse, stats.neg_lse)
    read_terms_kernel[(triton.cdiv(side.padded, 256),)](
        *(a.contiguous() for a in arrays),
        term.dloss.contiguous(),
        side.order,
        problem.coefficients,
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
            whole = launch.rows_whole(owner, listed)
        else:
            launch.by_panels(workspace_bytes, listed)
    if problem.spec.normalize and not whole:
        launch.project()
    return dx


class Launch:
    """The arguments that the gradient's kernels share."""

    def __init__(
        self,
        problem: Problem,
        row_terms: Tensor | None,
        column_terms: Tensor | None,
        poison: Tensor,
        scan: Scan | None,
        dx: Tensor,
    ) -> None:
        self.problem, self.scan, self.poison, self.dx = problem, scan, poison, dx
        given = row_terms if row_terms is not None else column_terms
        assert given is not None
        # What is absent is never read; one of both is there.
        self.row_terms = given if row_terms is None else row_terms
        self.column_terms = given if column_terms is None else column_terms
        self.poison_stride = 0 if poison.numel() == 1 else 1
        rows, columns = problem.rows, problem.columns
        self.group = problem.tiles.scan.block_m
        self.groups = int(triton.cdiv(rows.count, self.group))
        self.column_blocks = int(triton.cdiv(columns.count, self.group))
        self.given: Any = {"HAS_ROW": row_terms is not None, "HAS_COLUMN": column_terms is not None}
        self.pairs: Any = {
            "ID_MODE": problem.id_mode,
            "BOUNDED": problem.bounded,
            "RULES": problem.rules,
            **self.given,
        }
        half = rows.copy.dtype == torch.float16
        self.common: Any = {
            "MODE": problem.mode,
            "WEIGHT_SCALE": FLOAT16_SCALE if half else 1.0,
            "GROUP": self.group,
        }
        self.columns_read = (
            *(columns.copy, columns.scale, columns.ids, self.column_terms),
            problem.coefficients,
        )

    def lists(self, budget: int) -> Iterator[Listed]:
        """The lists of all groups, as many at a time as fit the budget."""
        problem, scan = self.problem, self.scan
        at_once = min(self.groups, max(1, budget // (4 * self.column_blocks)))
        new: Any = {"dtype": torch.int32, "device": problem.rows.device}
        tiles = torch.empty(at_once, self.column_blocks, **new)
        counts = torch.empty(at_once, 2, **new)
        for first in range(0, self.groups, at_once):
            groups = min(at_once, self.groups - first)
            tile_list_kernel[(groups,)](
                problem.first,
                problem.last,
                self.row_terms if scan is None else scan.tile_mass,
                self.row_terms,
                self.column_terms,
                self.row_terms if scan is None else scan.tolerance,
                tiles,
                counts,
                first,
                problem.rows.count,
                problem.columns.count,
                problem.rows.padded,
                problem.columns.padded,
                0 if scan is None else scan.tile_mass.shape[1],
                self.column_blocks,
                HAS_MASS=scan is not None,
                SYMMETRIC=problem.symmetric,
                TRANSPOSED=scan is not None and scan.transposed,
                GROUP=self.group,
                SCAN_N=problem.tiles.scan.block_n,
                BLOCK=32,
                **self.given,
            )
            yield Listed(first, groups, tiles, counts)

    def rows_whole(self, owner: Tile, listed: Listed) -> bool:
        """Whether dx has been taken through the normalisation."""
        problem, rows = self.problem, self.problem.rows
        height = listed.groups * self.group
        parts = self._parts(self.group // owner.block_m)
        partial = self._partial(parts, height) if parts > 1 else self.dx
        gradient_kernel[(height // owner.block_m * parts,)](
            *(rows.copy, rows.scale, rows.norm, rows.ids, self.row_terms),
            *(problem.first, problem.last, rows.order),
            *self.columns_read,
            listed.tiles,
            listed.counts,
            self.poison,
            partial,
            listed.first,
            parts,
            rows.count,
            rows.width,
            rows.stride,
            rows.padded,
            problem.columns.padded,
            self.column_blocks,
            self.poison_stride,
            NORMALIZE=problem.spec.normalize,
            SPLIT=parts > 1,
            BLOCK_M=owner.block_m,
            BLOCK_N=owner.block_n,
            BLOCK_D=max(16, triton.next_power_of_2(rows.stride)),
            num_warps=owner.warps,
            num_stages=owner.stages,
            **self.common,
            **self.pairs,
        )
        if parts > 1:
            self._sum_parts(partial, listed.first * self.group, height)
        return parts == 1

    def by_panels(self, budget: int, listed: Listed) -> None:
        """Panels of as many rows as keep the GPU busy, and of more if all their tiles fit."""
        rows, product = self.problem.rows, self.problem.tiles.product
        across = triton.cdiv(rows.stride, product.block_k) * (self.group // product.block_m)
        tile_bytes = self.group**2 * rows.copy.element_size()
        parts = self._parts(across)
        groups = min(listed.groups, triton.cdiv(BUSY, across))
        held = min(self.column_blocks, max(1, budget // (groups * tile_bytes)))
        if held == self.column_blocks:
            groups = min(listed.groups, max(groups, budget // (held * tile_bytes)))
        shape = (groups * self.group, held * self.group)
        panel = torch.empty(shape, dtype=rows.copy.dtype, device=rows.device)
        for start in range(0, listed.groups, groups):
            first, height = listed.first + start, min(groups, listed.groups - start) * self.group
            partial = self._partial(parts, height) if parts > 1 else self.dx
            for tile in range(0, self.column_blocks, held):
                place = (first, tile, min(held, self.column_blocks - tile))
                self._weights(panel, listed, place, height)
                self._product(panel, listed, place, height, partial, parts)
            if parts > 1:
                self._sum_parts(partial, first * self.group, height)

    def _parts(self, across: int) -> int:
        """Programs that share a block of rows; the same for every budget, as bits depend on it."""
        return min(self.column_blocks, max(1, BUSY // (self.groups * across)))

    def _partial(self, parts: int, height: int) -> Tensor:
        rows = self.problem.rows
        return torch.empty(parts, height, rows.stride, dtype=rows.dtype, device=rows.device)

    def _weights(
        self, panel: Tensor, listed: Listed, place: tuple[int, int, int], height: int
    ) -> None:
        problem, rows, tile = self.problem, self.problem.rows, self.problem.tiles.weights
        stash = None if self.scan is None else self.scan.stash
        scan_n = problem.tiles.scan.block_n
        across = place[2] * self.group // tile.block_n
        weights_kernel[(height // tile.block_m * across,)](
            *(rows.copy, rows.scale, rows.ids, self.row_terms),
            *(problem.first, problem.last),
            *self.columns_read,
            listed.tiles,
            listed.counts,
            panel if stash is None else stash,
            panel,
            listed.first,
            *place,
            rows.stride,
            rows.padded,
            problem.columns.padded,
            self.column_blocks,
            triton.cdiv(problem.columns.count, scan_n),
            STASH=stash is not None,
            SCAN_N=scan_n,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_K=problem.piece(tile.block_k),
            num_warps=tile.warps,
            num_stages=tile.stages,
            **self.common,
            **self.pairs,
        )

    def _product(
        self,
        panel: Tensor,
        listed: Listed,
        place: tuple[int, int, int],
        height: int,
        partial: Tensor,
        parts: int,
    ) -> None:
        problem, rows, tile = self.problem, self.problem.rows, self.problem.tiles.product
        pieces = triton.cdiv(rows.stride, tile.block_k)
        product_kernel[(height // tile.block_m * pieces * parts,)](
            panel,
            problem.columns.copy,
            rows.norm,
            rows.order,
            listed.tiles,
            listed.counts,
            self.poison,
            self.dx,
            partial,
            listed.first,
            *place,
            height,
            parts,
            rows.count,
            rows.width,
            rows.stride,
            self.column_blocks,
            self.poison_stride,
            SPLIT=parts > 1,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_D=tile.block_k,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **self.common,
        )

    def _sum_parts(self, partial: Tensor, first_row: int, height: int) -> None:
        rows = self.problem.rows
        sum_parts_kernel[(triton.cdiv(height, 16) * triton.cdiv(rows.stride, 64),)](
            partial,
            rows.norm,
            rows.order,
            self.poison,
            self.dx,
            first_row,
            height,
            partial.shape[0],
            rows.count,
            rows.width,
            rows.stride,
            self.poison_stride,
            ROWS=16,
            BLOCK_D=64,
        )

    def project(self) -> None:
        """Takes dx of the panels through the normalisation."""
        rows = self.problem.rows
        height, width = rows_at_once(rows.width)
        project_kernel[(triton.cdiv(rows.count, height),)](
            self.dx,
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
