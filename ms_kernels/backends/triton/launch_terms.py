"""Terms of the anchors from given statistics, and the gradient of those."""

import torch
from torch import Tensor

from ms_kernels.backends.interface import Term
from ms_kernels.backends.triton.launch_gradient import gradient
from ms_kernels.backends.triton.launch_negatives import scan_negatives
from ms_kernels.backends.triton.launch_ranked import (
    list_positives,
    no_lists,
    rounds,
    with_pulls,
)
from ms_kernels.backends.triton.launch_reduction import reduced
from ms_kernels.backends.triton.launch_statistics import Terms
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.backends.triton.terms import (
    NEG_ABOVE,
    NEG_BELOW,
    POS_BELOW,
    POS_FACTOR,
    ROWS,
    read_terms_kernel,
)


def gradient_of_terms(
    problem: Problem,
    other: Problem,
    row_term: Term | None,
    column_term: Term | None,
    workspace_bytes: int,
    weight_sums: Tensor | None = None,
) -> Tensor:
    """(N, D) gradient with respect to the rows of `problem`; `other` has its columns as rows.
    weight_sums: see `Launch`."""
    rows = problem.rows
    poison = None
    if column_term is not None:  # a weight that is not a number reaches every row
        poison = reduced(column_term.stats.neg_sum.contiguous()).poison
    if row_term is not None and row_term is not column_term:
        own_poison = row_term.stats.neg_sum.contiguous()
        poison = own_poison if poison is None else own_poison + poison
    assert poison is not None

    def gradient_for(own: Terms | None, others: Terms | None) -> Tensor:
        return gradient(
            problem, own, others, poison, None, workspace_bytes, weight_sums=weight_sums
        )

    same = column_term is row_term
    if not problem.ranked:
        own = None if row_term is None else read_terms(problem, row_term, workspace_bytes)
        others = own
        if not same:
            others = None
            if column_term is not None:
                others = read_terms(other, column_term, workspace_bytes)
        return gradient_for(own, others)
    # Lists of both sides need not be equally long, so each goes its own way.
    dx = torch.zeros(rows.count, rows.width, dtype=rows.dtype, device=rows.device)
    if row_term is not None:
        for passed in rounds(problem):
            own = read_terms(problem, row_term, workspace_bytes, passed)
            dx += gradient_for(own, own if same else None)
    if column_term is not None and not same:
        for passed in rounds(other):
            dx += gradient_for(None, read_terms(other, column_term, workspace_bytes, passed))
    return dx


def read_terms(problem: Problem, term: Term, workspace_bytes: int, passed: int = 0) -> Terms:
    """Of the rows of `problem`, from their statistics and the gradient of their losses.

    A ranked rule lists the rows' positives anew, and counts which negatives reach them: its columns
    must be all candidates. passed: as of `launch_statistics.statistics`.
    """
    rows = problem.rows
    numbers = torch.empty(ROWS, rows.padded, dtype=rows.dtype, device=rows.device)
    block = problem.tiles.scan.block_m
    launch_kernel(
        read_terms_kernel,
        (rows.padded // block,),
        *(array.contiguous() for array in (*term.stats, term.dloss)),
        rows.order,
        problem.coefficients,
        numbers,
        rows.count,
        rows.padded,
        COUNTS=problem.rule.counts,
        BLOCK=block,
        **problem.anchor_constants,
    )
    if not problem.ranked:
        return Terms(numbers, no_lists(numbers))
    above, pos_below = numbers[NEG_ABOVE.value], numbers[POS_BELOW.value]
    below = numbers[NEG_BELOW.value] if problem.mining.two_sided else None
    lists = list_positives(problem, pos_below, passed)
    scan_negatives(problem, above, below, lists, workspace_bytes, exact=False)
    return Terms(numbers, with_pulls(lists, numbers[POS_FACTOR.value]))
