"""What the launches of the gradient's kernels share: their arguments, and sums of several parts."""

from typing import Any, ClassVar

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.gradient_sums import sum_parts_kernel
from ms_kernels.backends.triton.launch_statistics import Terms
from ms_kernels.backends.triton.problem import BUSY, Problem
from ms_kernels.backends.triton.rows import project_kernel
from ms_kernels.backends.triton.side_rows import rows_at_once
from ms_kernels.backends.triton.tape import launch_kernel

# Weights are at most 2 in absolute value; this lifts them into the range of float16.
FLOAT16_SCALE = 4096.0


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
        scale: Tensor | None,
        dx: Tensor,
        weight_sums: Tensor | None = None,
    ) -> None:
        """weight_sums: (4) `WeightSums` of what was before, to which those of all pairs are
        added."""
        self.problem, self.poison, self.dx = problem, poison, dx
        self.weight_sums = weight_sums
        self.scaled = scale is not None
        self.scale = poison if scale is None else scale  # else never read
        self.poison_stride = 0 if poison.numel() == 1 else 1
        given = row_terms if row_terms is not None else column_terms
        assert given is not None
        # What is absent is never read; one of both is there.
        own = given if row_terms is None else row_terms
        other = given if column_terms is None else column_terms
        self.row_terms = own.numbers
        rows, columns = problem.rows, problem.columns
        self.pairs: Any = {
            **problem.pair_constants,
            "HAS_ROW": row_terms is not None,
            "HAS_COLUMN": column_terms is not None,
        }
        half = rows.copy.dtype == torch.float16
        self.common: Any = {"MODE": problem.mode, "WEIGHT_SCALE": FLOAT16_SCALE if half else 1.0}
        self.rows_read = (rows.ids, own.numbers, *lists_read(own))
        self.columns_read = (
            *(columns.copy, columns.scale, columns.ids, other.numbers, *lists_read(other)),
            other.lists.in_use,
            problem.coefficients,
        )

    def parts(self, programs: int, tiles: int) -> int:
        """How many share each of so many blocks, which go through so many tiles; the same for every
        budget, as bits depend on it."""
        return min(tiles, max(1, self.BUSY // programs))

    def partial(self, parts: int, height: int) -> Tensor:
        rows = self.problem.rows
        return torch.empty(parts, height, rows.stride, dtype=rows.dtype, device=rows.device)

    def sum_parts(self, partial: Tensor, first_row: int) -> None:
        rows, height = self.problem.rows, partial.shape[1]
        at_once, width = rows_at_once(rows.stride)
        launch_kernel(
            sum_parts_kernel,
            (triton.cdiv(height, at_once),),
            partial,
            rows.copy,
            rows.scale,
            rows.norm,
            rows.order,
            self.scale,
            self.poison,
            self.dx,
            first_row,
            height,
            partial.shape[0],
            rows.count,
            rows.width,
            rows.stride,
            self.poison_stride,
            NORMALIZE=self.problem.normalizes,
            SCALED=self.scaled,
            ROWS=at_once,
            BLOCK_D=width,
            num_warps=8,
        )

    def project(self) -> None:
        """Takes dx through the normalisation."""
        rows = self.problem.rows
        if not self.problem.normalizes:
            return
        height, width = rows_at_once(rows.width)
        launch_kernel(
            project_kernel,
            (triton.cdiv(rows.count, height),),
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
