"""What the launches of the gradient's kernels share, and the tiles that they must visit."""

from collections.abc import Iterator
from typing import Any, ClassVar, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.gradient_sums import sum_parts_kernel
from ms_kernels.backends.triton.launch_statistics import Terms
from ms_kernels.backends.triton.problem import BUSY, Problem, rows_at_once
from ms_kernels.backends.triton.rows import project_kernel
from ms_kernels.backends.triton.tile_list import tile_list_kernel

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


def lists_read(terms: Terms) -> tuple[Tensor, Tensor, Tensor]:
    return terms.lists.thresholds, terms.lists.pulls, terms.lists.first_rank


class Launch:
    """The arguments that the gradient's kernels share."""

    BUSY: ClassVar[int] = BUSY

    def __init__(
        self,
        problem: Problem,
        row_terms: Terms | None,
        column_terms: Terms | None,
        poison: Tensor,
        scan: Scan | None,
        dx: Tensor,
    ) -> None:
        self.problem, self.scan, self.poison, self.dx = problem, scan, poison, dx
        given = row_terms if row_terms is not None else column_terms
        assert given is not None
        # What is absent is never read; one of both is there.
        own = given if row_terms is None else row_terms
        other = given if column_terms is None else column_terms
        self.row_terms, self.column_terms = own.numbers, other.numbers
        self.poison_stride = 0 if poison.numel() == 1 else 1
        rows, columns = problem.rows, problem.columns
        self.group = problem.tiles.scan.block_m
        self.groups = int(triton.cdiv(rows.count, self.group))
        self.column_blocks = int(triton.cdiv(columns.count, self.group))
        self.given: Any = {"HAS_ROW": row_terms is not None, "HAS_COLUMN": column_terms is not None}
        self.pairs: Any = {**problem.pair_constants, **self.given}
        half = rows.copy.dtype == torch.float16
        self.common: Any = {
            "MODE": problem.mode,
            "WEIGHT_SCALE": FLOAT16_SCALE if half else 1.0,
            "GROUP": self.group,
        }
        self.rows_read = (rows.ids, own.numbers, *lists_read(own))
        self.columns_read = (
            *(columns.copy, columns.scale, columns.ids, other.numbers, *lists_read(other)),
            other.lists.in_use,
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

    def parts(self, across: int) -> int:
        """Programs that share a block of rows; the same for every budget, as bits depend on it."""
        return min(self.column_blocks, max(1, self.BUSY // (self.groups * across)))

    def partial(self, parts: int, height: int) -> Tensor:
        rows = self.problem.rows
        return torch.empty(parts, height, rows.stride, dtype=rows.dtype, device=rows.device)

    def sum_parts(self, partial: Tensor, first_row: int, height: int) -> None:
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
