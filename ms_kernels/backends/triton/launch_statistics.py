"""Launches the scans: from a Problem to statistics of its rows, to losses and terms, or both."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.finish import finish_kernel
from ms_kernels.backends.triton.launch import arguments
from ms_kernels.backends.triton.launch_hardest import scan_hardest
from ms_kernels.backends.triton.launch_negatives import (
    NegativeScan,
    has_peak,
    is_counted,
    scan_negatives,
)
from ms_kernels.backends.triton.launch_ranked import (
    Lists,
    add_counts,
    list_positives,
    no_lists,
    with_pulls,
)
from ms_kernels.backends.triton.positives import bounds_kernel, positive_scan_kernel
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.backends.triton.terms import POS_FACTOR, ROWS
from ms_kernels.reference import RowStatistics


class Terms(NamedTuple):
    """What the anchors of one side add to weights: `terms.py`, `ranked.py`."""

    numbers: Tensor  # (8, padded)
    lists: Lists


class Statistics(NamedTuple):
    exact: RowStatistics | None  # in the caller's order, if asked for
    loss: Tensor  # (N) in the caller's order, as what follows if terms are asked for
    valid: Tensor  # (N): 1 where an anchor keeps a pair
    terms: Terms
    stash: Tensor | None  # exponentials of the negative scan, where they were asked for and fit


class Bounds(NamedTuple):
    """Strict bounds of kept pairs, (padded) each."""

    neg_above: Tensor
    neg_below: Tensor | None  # of two-sided mining
    pos_below: Tensor | None  # where positives are listed
    kth_hardest: Tensor | None  # the negative that bounds, where it is not the hardest


def statistics(
    problem: Problem,
    workspace_bytes: int,
    exact: bool,
    stash_bytes: int = 0,
    dloss: Tensor | None = None,
    passed: int = 0,
    with_terms: bool = True,
    bounded: tuple[Tensor, Bounds] | None = None,
) -> Statistics:
    """Statistics of each row if `exact`; its loss and what the gradient needs if `with_terms`.

    dloss: (N) incoming gradient of each loss, contiguous and in the compute dtype; of ones if None.
    passed: candidates of each class that earlier rounds had (`launch_ranked.rounds`). bounded: what
    `scan_positives` finds, of anchors whose hardest pairs lie among other candidates too.
    """
    hardest_positive, bounds = scan_positives(problem) if bounded is None else bounded
    lists = None
    if bounds.pos_below is not None:
        lists = list_positives(problem, bounds.pos_below, passed)
    scan = scan_negatives(
        problem, bounds.neg_above, bounds.neg_below, lists, workspace_bytes, exact, stash_bytes
    )
    how = exact, with_terms, dloss
    return _finish(problem, hardest_positive, bounds.kth_hardest, scan, lists, *how)


def scan_positives(problem: Problem) -> tuple[Tensor, Bounds]:
    """(padded) hardest positives, and the bounds of kept pairs that the scan or the lists need."""
    rows, tile = problem.rows, problem.tiles.scan
    sides, others, common = arguments(problem)
    new: Any = {"dtype": rows.dtype, "device": rows.device}
    hardest, above = torch.empty(rows.padded, **new), torch.empty(rows.padded, **new)
    below = torch.empty(rows.padded, **new) if problem.mining.two_sided else None
    pos_below = torch.empty(rows.padded, **new) if problem.ranked else None
    launch_kernel(
        positive_scan_kernel,
        (rows.padded // tile.block_m,),
        *sides,
        rows.ids,
        problem.first,
        problem.last,
        *others,
        hardest,
        above,
        above if below is None else below,
        above if pos_below is None else pos_below,
        rows.count,
        rows.stride,
        MINING=problem.mining.name,
        TWO_SIDED=below is not None,
        LISTED=pos_below is not None,
        **common,
    )
    # Negatives are bounded by their own hardest, or positives that are listed before the scan.
    mining = problem.mining
    kth_hardest = None
    if problem.hardest_negatives or (problem.ranked and mining.bounds_positives):
        kth_hardest = scan_hardest(problem, max(1, problem.hardest_negatives))
        launch_kernel(
            bounds_kernel,
            (rows.padded // tile.block_m,),
            hardest,
            kth_hardest,
            problem.coefficients,
            above,
            above if pos_below is None else pos_below,
            rows.count,
            MINING=mining.name,
            LISTED=pos_below is not None,
            BLOCK=tile.block_m,
        )
    if problem.hardest_negatives <= 1:  # it is the scan's own
        kth_hardest = None
    return hardest, Bounds(above, below, pos_below, kth_hardest)


def _finish(
    problem: Problem,
    hardest_positive: Tensor,
    kth_hardest: Tensor | None,  # in the place of the hardest negative, if given
    scan: NegativeScan,
    lists: Lists | None,
    exact: bool,
    with_terms: bool,
    dloss: Tensor | None,
) -> Statistics:
    rows, columns = problem.rows, problem.columns
    sides, others, common = arguments(problem)
    new: Any = {"dtype": rows.dtype, "device": rows.device}
    integer: Any = {"dtype": torch.int64, "device": rows.device}
    exact_count, loss_count = rows.count * exact, rows.count * with_terms
    floats = [torch.empty(exact_count, **new) for _ in range(5)]
    counts = [torch.empty(exact_count, **integer) for _ in range(2)]
    found = RowStatistics._make([*floats[:4], *counts, floats[4]])
    loss, valid = torch.empty(loss_count, **new), torch.empty(loss_count, **integer)
    terms = torch.empty(ROWS, rows.padded * with_terms, **new)
    launch_kernel(
        finish_kernel,
        (triton.cdiv(rows.padded, problem.tiles.scan.block_m),),
        *sides,
        rows.norm,
        rows.ids,
        problem.first,
        problem.last,
        rows.order,
        *others[:3],
        columns.poisoned,
        problem.coefficients,
        hardest_positive,
        scan.hardest if kth_hardest is None else kth_hardest,
        scan.peak,
        scan.sums,
        scan.kept,
        rows.norm if dloss is None else dloss,
        terms,
        loss,
        valid,
        *found,
        rows.count,
        columns.count,
        rows.stride,
        rows.padded,
        NEGATIVE=problem.rule.negative,
        POSITIVE=problem.rule.positive,
        HAS_OFFSET=problem.rule.has_offset,
        BOUNDED=problem.bounded,
        COUNTED=is_counted(problem, exact),
        PEAK=has_peak(problem, exact) or kth_hardest is not None,
        EXACT=exact,
        TERMS=with_terms,
        INCOMING=dloss is not None,
        **problem.anchor_constants,
        **common,
    )
    if lists is not None and exact:
        add_counts(problem, lists, found.pos_moment)
    listed = no_lists(terms) if lists is None else lists
    if lists is not None and with_terms:
        listed = with_pulls(lists, terms[POS_FACTOR.value])
    given = Terms(terms, listed)
    return Statistics(found if exact else None, loss, valid, given, scan.stash)
