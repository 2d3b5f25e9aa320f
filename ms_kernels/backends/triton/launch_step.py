"""Launches a training step: from two sides to the loss and its gradients."""

from collections.abc import Hashable
from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import Counted, Side, compute_dtype
from ms_kernels.backends.triton.launch_gradient import gradient
from ms_kernels.backends.triton.launch_longer import Sides
from ms_kernels.backends.triton.launch_ranked import rounds
from ms_kernels.backends.triton.launch_reduction import Reduced, reduced
from ms_kernels.backends.triton.launch_statistics import Statistics, statistics
from ms_kernels.backends.triton.played import Found
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.tape import Run, taped
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet
from ms_kernels.settings import float32_products, options


class Step(NamedTuple):
    loss: Tensor  # (), of the last round
    row_loss: Tensor  # (N)
    valid: Tensor  # (N): above 0 where an anchor keeps a pair
    stats: RowStatistics | None  # in the caller's order, if asked for
    dx: Tensor | None
    dr: Tensor | None


def step(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None,
) -> Found:
    """Losses (N), valid (N), dx and dr. dloss: (N) incoming gradient of each loss."""
    dloss = _readable(dloss, anchors)

    def launched() -> Found:
        found = _launched(anchors, candidates, spec, need_dx, need_dr, dloss, "sum", None)
        return found.row_loss, found.valid, found.dx, found.dr

    asked = "losses", need_dx, need_dr
    return _taped(anchors, candidates, spec, asked, launched, dloss=dloss)


def counted_step(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None,
) -> Counted:
    """The same with the statistics of the anchors, to the bits of `exact_statistics`: its tiles
    and its products, whatever the losses are worth."""
    dloss = _readable(dloss, anchors)

    def launched() -> Found:
        how = need_dx, need_dr, dloss, "sum", None
        found = _launched(anchors, candidates, spec, *how, exact=True)
        assert found.stats is not None
        return found.row_loss, found.dx, found.dr, *found.stats

    asked = "counted", need_dx, need_dr
    losses, dx, dr, *stats = _taped(anchors, candidates, spec, asked, launched, dloss=dloss)
    assert losses is not None
    return Counted(losses, RowStatistics._make(stats), dx, dr, None)


def reduced_step(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
    key: Hashable | None = None,
) -> Found:
    """The loss in `dtype`, dx and dr. key: `key_of_reduced`, where it is known."""

    def launched() -> Found:
        found = _launched(anchors, candidates, spec, need_dx, need_dr, None, reduction, dtype)
        return found.loss, found.dx, found.dr

    asked = reduction, dtype, need_dx, need_dr
    return _taped(anchors, candidates, spec, asked, launched, key)


def key_of_reduced(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
) -> Hashable:
    """What a tape of reduced_step is known by, but for where its tensors lie."""
    return _key(anchors, candidates, spec, (reduction, dtype, need_dx, need_dr))


def exact_statistics(anchors: Side, candidates: Side | None, spec: PairSpec) -> RowStatistics:
    """Of every anchor, in the caller's order."""

    def launched() -> RowStatistics:
        sides = Sides(anchors, candidates, spec)
        problem = Problem(sides.rows, sides.columns, spec, wide=True)
        return statistics_by_rounds(problem, options.workspace_bytes)

    return RowStatistics._make(_taped(anchors, candidates, spec, (), launched))


def statistics_by_rounds(problem: Problem, budget: int) -> RowStatistics:
    """Of every row, in the caller's order."""
    found = None
    for passed in rounds(problem):
        more = statistics(problem, budget, exact=True, passed=passed, with_terms=False).exact
        found = _with_round(found, more)
    assert found is not None
    return found


def _with_round(found: RowStatistics | None, more: RowStatistics | None) -> RowStatistics | None:
    """Statistics of one round more: what is no sum over lists is the same in all of them."""
    if found is None or more is None:
        return more
    found.neg_sum.add_(more.neg_sum)
    found.pos_moment.add_(more.pos_moment)
    return found


def _readable(dloss: Tensor | None, anchors: Side) -> Tensor | None:
    """As the kernels read it, before a step is taken down, which knows no conversion."""
    return None if dloss is None else dloss.to(compute_dtype(anchors.embeddings)).contiguous()


def _taped(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    asked: tuple[object, ...],
    run: Run,
    key: Hashable | None = None,
    dloss: Tensor | None = None,
) -> Found:
    """By a tape, but for rules that go by rounds and sides without rows."""
    inputs = [t for t in (*anchors, *(candidates or ()), dloss) if t is not None]
    if isinstance(spec.weighting, Triplet) or not all(t.shape[0] for t in inputs):
        return run()
    if key is None:
        key = _key(anchors, candidates, spec, (*asked, dloss is not None))
    return taped(key, inputs, run)


def _key(
    anchors: Side, candidates: Side | None, spec: PairSpec, asked: tuple[object, ...]
) -> Hashable:
    kinds = tuple(None if t is None else _kind(t) for t in (*anchors, *(candidates or ())))
    budgets = options.workspace_bytes, options.stash_bytes
    x = anchors.embeddings
    around = x.device, *budgets, float32_products() if x.dtype == torch.float32 else None
    return spec, asked, kinds, around


def _kind(tensor: Tensor) -> tuple[object, ...]:
    return tensor.shape, tensor.stride(), tensor.dtype


def _launched(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None,
    reduction: str,
    dtype: torch.dtype | None,
    exact: bool = False,
) -> Step:
    sides = Sides(anchors, candidates, spec)
    anchors, candidates = sides.rows, sides.columns
    # With incoming gradients weights may be of any size; and statistics have one size of tiles.
    problem = Problem(anchors, candidates, spec, wide=dloss is not None or exact)
    stash_bytes = options.stash_bytes if need_dx and problem.shares else 0
    row_loss = valid = stats = dx = dr = None
    for passed in rounds(problem):  # sums and gradients of all rounds add up
        found = statistics(problem, options.workspace_bytes, exact, stash_bytes, dloss, passed)
        stats = _with_round(stats, found.exact)
        total = reduced(found.loss, found.valid, reduction, dtype)
        more_dx, more_dr = _gradients(
            problem, anchors, candidates, need_dx, need_dr, found, total, reduction != "sum"
        )
        if row_loss is None:
            row_loss, valid, dx, dr = found.loss, found.valid, more_dx, more_dr
            continue
        row_loss = row_loss + found.loss
        dx = None if dx is None or more_dx is None else dx + more_dx
        dr = None if dr is None or more_dr is None else dr + more_dr
    assert row_loss is not None and valid is not None
    return Step(total.loss, row_loss, valid, stats, sides.of_rows(dx), sides.of_columns(dr))


def _gradients(
    problem: Problem,
    anchors: Side,
    candidates: Side | None,
    need_dx: bool,
    need_dr: bool,
    found: Statistics,
    total: Reduced,
    is_scaled: bool,
) -> tuple[Tensor | None, Tensor | None]:
    budget, poison = options.workspace_bytes, total.poison
    scale = total.scale if is_scaled else None
    terms = found.terms
    dx = dr = None
    if need_dx and candidates is None:
        dx = gradient(problem, terms, terms, poison, found.stash, budget, scale)
    elif need_dx:  # a row that is not finite spoils no other
        dx = gradient(problem, terms, None, found.loss, None, budget, scale)
    if need_dr and candidates is not None:
        ranges = problem.columns.ranges_among(candidates.labels, problem.rows, anchors.labels)
        other = problem.other_way(*ranges)
        dr = gradient(other, None, terms, poison, None, budget, scale)
    return dx, dr
