"""Launches the gradient: from a Problem and the terms of its sides to dx."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.backends.interface import Term
from ms_kernels.triton_kernels.gradient import gradient_kernel, product_kernel, weights_kernel
from ms_kernels.triton_kernels.problem import Problem, Rows, rows_at_once
from ms_kernels.triton_kernels.rows import project_kernel
from ms_kernels.triton_kernels.tile_list import tile_list_kernel
from ms_kernels.triton_kernels.tiles import Tile, owner_of
from ms_kernels.triton_kernels.weights import read_terms_kernel

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
    for listed in launch.lists(workspace_bytes):
        if owner is not None:
            launch.rows_whole(owner, listed)
        else:
            launch.by_panels(workspace_bytes, listed)
    if owner is None and problem.spec.normalize:
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
        self.pairs: Any = {"ID_MODE": problem.id_mode, "BOUNDED": problem.bounded, **self.given}
        half = rows.copy.dtype == torch.float16
        self.common: Any = {
            "MODE": problem.mode,
            "WEIGHT_SCALE": FLOAT16_SCALE if half else 1.0,
            "GROUP": self.group,
        }
        self.columns_read = (
            *(columns.copy, columns.scale, columns.ids, self.column_terms),
            problem.options,
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

    def rows_whole(self, owner: Tile, listed: Listed) -> None:
        problem, rows = self.problem, self.problem.rows
        gradient_kernel[(listed.groups * self.group // owner.block_m,)](
            *(rows.copy, rows.scale, rows.norm, rows.ids, self.row_terms),
            *(problem.first, problem.last, rows.order),
            *self.columns_read,
            listed.tiles,
            listed.counts,
            self.poison,
            self.dx,
            listed.first,
            rows.count,
            rows.width,
            rows.stride,
            rows.padded,
            problem.columns.padded,
            self.column_blocks,
            self.poison_stride,
            NORMALIZE=problem.spec.normalize,
            BLOCK_M=owner.block_m,
            BLOCK_N=owner.block_n,
            BLOCK_D=max(16, triton.next_power_of_2(rows.stride)),
            num_warps=owner.warps,
            num_stages=owner.stages,
            **self.common,
            **self.pairs,
        )

    def by_panels(self, budget: int, listed: Listed) -> None:
        rows = self.problem.rows
        width = self.column_blocks * self.group
        row_bytes = width * rows.copy.element_size()
        at_once = min(listed.groups, max(1, budget // (row_bytes * self.group)))
        shape = (at_once * self.group, width)
        panel = torch.empty(shape, dtype=rows.copy.dtype, device=rows.device)
        for start in range(0, listed.groups, at_once):
            first, height = listed.first + start, min(at_once, listed.groups - start) * self.group
            self._weights(panel, listed, first, height)
            self._product(panel, listed, first, height)

    def _weights(self, panel: Tensor, listed: Listed, first: int, height: int) -> None:
        problem, rows, tile = self.problem, self.problem.rows, self.problem.tiles.weights
        stash = None if self.scan is None else self.scan.stash
        scan_n = problem.tiles.scan.block_n
        weights_kernel[(height // tile.block_m * (panel.shape[1] // tile.block_n),)](
            *(rows.copy, rows.scale, rows.ids, self.row_terms),
            *(problem.first, problem.last),
            *self.columns_read,
            listed.tiles,
            listed.counts,
            panel if stash is None else stash,
            panel,
            listed.first,
            first,
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

    def _product(self, panel: Tensor, listed: Listed, first: int, height: int) -> None:
        problem, rows, tile = self.problem, self.problem.rows, self.problem.tiles.product
        pieces = triton.cdiv(rows.stride, tile.block_k)
        product_kernel[(height // tile.block_m * pieces,)](
            panel,
            problem.columns.copy,
            rows.norm,
            rows.order,
            listed.tiles,
            listed.counts,
            self.poison,
            self.dx,
            listed.first,
            first,
            rows.count,
            rows.width,
            rows.stride,
            self.column_blocks,
            self.poison_stride,
            BLOCK_M=tile.block_m,
            BLOCK_N=tile.block_n,
            BLOCK_D=tile.block_k,
            num_warps=tile.warps,
            num_stages=tile.stages,
            **self.common,
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
