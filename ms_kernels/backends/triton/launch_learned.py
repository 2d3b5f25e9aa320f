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
from ms_kernels.settings import options as settings


def learned_statistics(
    anchors: Side, candidates: Side | None, spec: PairSpec, options: Tensor
) -> RowStatistics:
    """Of every anchor, in the caller's order."""
    sides = Sides(anchors, candidates, spec)
    problem = Problem(sides.rows, sides.columns, spec, wide=True, options=options)
    return statistics_by_rounds(problem, settings.workspace_bytes)


def learned_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    options: Tensor,
    term: Term,
    need_dx: bool,
    need_dr: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """Both gradients, where they are wanted, and sums of weights (4,) in the compute dtype, of
    whichever side comes first: of the pairs they are the same."""
    count = len(WeightSums._fields)
    sums = torch.zeros(count, dtype=torch.float64, device=term.dloss.device)
    passes = [False] if need_dx or not need_dr else []
    passes += [True] if need_dr and candidates is not None else []
    found: list[Tensor | None] = [None, None]
    for exchanged in passes:
        first = exchanged == passes[0]
        rows, columns = (candidates, anchors) if exchanged else (anchors, candidates)
        assert rows is not None
        sides = Sides(rows, columns, spec, exchanged)
        problem = other = Problem(sides.rows, sides.columns, spec, wide=True, options=options)
        row_term, column_term = (None, term) if exchanged else (term, None)
        if exchanged:
            assert columns is not None
            ranges = problem.columns.ranges_among(columns.labels, problem.rows, rows.labels)
            other = problem.other_way(*ranges)
        elif candidates is None:
            column_term = term
        of_sums = sums if first and not problem.ranked else None
        budget = settings.workspace_bytes
        gradient = gradient_of_terms(problem, other, row_term, column_term, budget, of_sums)
        found[exchanged] = sides.of_rows(gradient)
    if candidates is None:  # a pair is in both triangles
        sums /= 2
    dx, dr = found
    return dx if need_dx else None, dr, sums.to(term.dloss.dtype)
