"""Launches the statistics of a block of candidates, by hardest pairs that are known of all."""

from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import Known, Side
from ms_kernels.backends.triton.launch_longer import Sides
from ms_kernels.backends.triton.launch_statistics import Bounds, statistics
from ms_kernels.backends.triton.positives import known_bounds_kernel
from ms_kernels.backends.triton.problem import Problem
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
    how = {"exact": True, "with_terms": False, "bounded": _bounded(problem, known)}
    found = statistics(problem, options.workspace_bytes, **how).exact  # type: ignore[arg-type]
    assert found is not None
    return found


def _bounded(problem: Problem, known: Known) -> tuple[Tensor, Bounds]:
    """(padded) hardest positives, in label order, and the bounds that follow."""
    rows, block = problem.rows, problem.tiles.scan.block_m
    new: Any = {"dtype": rows.dtype, "device": rows.device}
    least, most, above = (torch.empty(rows.padded, **new) for _ in range(3))
    launch_kernel(
        known_bounds_kernel,
        (rows.padded // block,),
        known.hardest_positive.to(rows.dtype).contiguous(),
        known.hardest_negative.to(rows.dtype).contiguous(),
        rows.order,
        problem.coefficients,
        least,
        most,
        above,
        rows.count,
        MINING=problem.mining.name,
        BLOCK=block,
    )
    return least, Bounds(above, least if problem.mining.two_sided else None, None, most)
