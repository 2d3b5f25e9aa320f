"""Launches the statistics of a block of candidates, by hardest pairs that are known of all."""

import torch
from torch import Tensor

from ms_kernels.backends.interface import Known, Side
from ms_kernels.backends.triton.launch_longer import Sides
from ms_kernels.backends.triton.launch_statistics import Bounds, statistics
from ms_kernels.backends.triton.positives import bounds_kernel
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.side_rows import Rows
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.settings import options


def block_statistics(
    anchors: Side, candidates: Side | None, spec: PairSpec, known: Known
) -> RowStatistics:
    """Of every anchor, in the caller's order."""
    sides = Sides(anchors, candidates, spec)
    problem = Problem(sides.rows, sides.columns, spec, wide=True)
    least = _in_label_order(known.hardest_positive, problem.rows, torch.inf)
    most = _in_label_order(known.hardest_negative, problem.rows, -torch.inf)
    bounded = least, _bounds(problem, least, most)
    how = {"exact": True, "with_terms": False, "bounded": bounded}
    found = statistics(problem, options.workspace_bytes, **how).exact  # type: ignore[arg-type]
    assert found is not None
    return found


def _in_label_order(numbers: Tensor, rows: Rows, nothing: float) -> Tensor:
    """(padded) of (N) in the caller's order."""
    found = torch.full((rows.padded,), nothing, dtype=rows.dtype, device=rows.device)
    found[: rows.count] = numbers[rows.order[: rows.count]]
    return found


def _bounds(problem: Problem, least: Tensor, most: Tensor) -> Bounds:
    """Of anchors whose hardest pairs are both known."""
    above, block = torch.empty_like(least), problem.tiles.scan.block_m
    launch_kernel(
        bounds_kernel,
        (problem.rows.padded // block,),
        least,
        most,
        problem.coefficients,
        above,
        above,
        problem.rows.count,
        MINING=problem.mining.name,
        LISTED=False,
        BLOCK=block,
    )
    return Bounds(above, least if problem.mining.two_sided else None, None, most)
