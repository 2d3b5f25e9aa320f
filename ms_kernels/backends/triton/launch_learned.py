"""Statistics and gradients where options of the weighting rule learn, read from the device."""

import torch
from torch import Tensor

from ms_kernels.backends.interface import Side, Term
from ms_kernels.backends.triton.launch_longer import Sides
from ms_kernels.backends.triton.launch_step import statistics_by_rounds
from ms_kernels.backends.triton.launch_terms import gradient_of_terms
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import WeightSums
from ms_kernels.settings import options


def learned_statistics(
    anchors: Side, candidates: Side | None, spec: PairSpec, option_values: Tensor
) -> RowStatistics:
    """Of every anchor, in the caller's order."""
    sides = Sides(anchors, candidates, spec)
    problem = Problem(sides.rows, sides.columns, spec, wide=True, option_values=option_values)
    return statistics_by_rounds(problem, options.workspace_bytes)


def learned_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    option_values: Tensor,
    term: Term,
    need_dx: bool,
    need_dr: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Both gradients, where they are wanted, and sums of weights (4,) in the compute dtype, of
    whichever side comes first: of the pairs they are the same."""
    zeros = torch.zeros(len(WeightSums._fields), dtype=torch.float64, device=term.dloss.device)
    sides = Sides(anchors, candidates, spec)
    problem = Problem(sides.rows, sides.columns, spec, wide=True, option_values=option_values)
    sums, budget = None if problem.ranked else zeros, options.workspace_bytes
    dx = dr = None
    if need_dx or not need_dr:
        own = term if candidates is None else None
        dx = gradient_of_terms(problem, problem, term, own, budget, sums)
        sums = None
    if need_dr and candidates is not None:
        ranges = problem.columns.ranges_among(candidates.labels, problem.rows, anchors.labels)
        other = problem.other_way(*ranges)
        dr = gradient_of_terms(other, problem, None, term, budget, sums)
    if candidates is None:  # a pair is in both triangles
        zeros /= 2
    dx, dr = sides.of_rows(dx if need_dx else None), sides.of_columns(dr)
    return dx, dr, zeros.to(term.dloss.dtype)
