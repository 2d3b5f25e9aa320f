"""Launches the scans of the other pair losses: from a Problem to losses and terms of its rows."""

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.family_finish import family_finish_kernel
from ms_kernels.backends.triton.launch_statistics import (
    Statistics,
    arguments,
    scan_negatives,
    scan_positives,
)
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.triplet import list_kernel
from ms_kernels.rules.mining import (
    HardestMining,
    Mining,
    MultiSimilarityMining,
    SemiHardMining,
    ThresholdMining,
)
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet

# Of the lists of a triplet loss, and the fewest slots there are.
LIST_BYTES, LEAST_RANKS = 40 << 20, 64


def family_statistics(
    problem: Problem,
    mining: Mining,
    dloss: Tensor | None,
    workspace_bytes: int,
    passed: int = 0,
) -> Statistics:
    """Loss and number of kept pairs of each row, and what the gradient needs for `dloss`.

    passed: candidates of each class that earlier rounds of a triplet loss had.
    """
    rows = problem.rows
    sides, others, constants = arguments(problem)
    least = scan_positives(problem)
    bounds, terms = _bounds_and_terms(problem)
    bounds[1:] = torch.inf
    assert isinstance(problem.spec, PairSpec)
    ranked = isinstance(problem.spec.weighting, Triplet)
    if ranked:
        problem.coefficients[7] = 0  # nothing is listed yet
    if isinstance(mining, HardestMining) or (ranked and isinstance(mining, MultiSimilarityMining)):
        # Negatives are bounded by their own hardest, or positives are listed before the scan.
        bounds[0] = -torch.inf
        most = scan_negatives(problem, bounds, workspace_bytes, exact=False).hardest
        _bound_negatives(bounds, mining, least, most)
    else:
        most = torch.full_like(least, -torch.inf)
        _bound_negatives(bounds, mining, least, None)
    if ranked:
        _bound_positives(bounds, mining, least, most)
        _list_positives(problem, bounds, terms, passed)
    scan = scan_negatives(problem, bounds, workspace_bytes, exact=False)
    _bound_positives(bounds, mining, least, scan.hardest)

    loss = torch.empty(rows.count, dtype=rows.dtype, device=rows.device)
    kept = torch.empty(rows.count, dtype=torch.int64, device=rows.device)
    incoming = torch.ones_like(loss) if dloss is None else dloss.to(rows.dtype).contiguous()
    family_finish_kernel[(triton.cdiv(rows.padded, problem.tiles.scan.block_m),)](
        *sides,
        rows.norm,
        rows.ids,
        problem.first,
        problem.last,
        rows.order,
        *others[:3],
        problem.columns.poisoned,
        problem.coefficients,
        bounds,
        scan.hardest,
        scan.sums,
        scan.kept,
        incoming,
        terms,
        loss,
        kept,
        rows.count,
        problem.columns.count,
        rows.stride,
        rows.padded,
        BOUNDED=problem.bounded,
        RULES=problem.rules,
        **constants,
    )
    if ranked:  # a positive without weight weighs nothing whatever its anchor's factor
        numbers = terms[10::2]
        numbers.copy_(torch.where(numbers > 0, numbers * terms[6], 0))
    return Statistics(None, loss, kept, terms, scan.tile_mass, None)


def most_ranks(problem: Problem) -> int:
    """Slots of the lists of a triplet loss: as many as LIST_BYTES hold, or LEAST_RANKS."""
    slot_bytes: int = 2 * problem.rows.padded * problem.rows.scale.element_size()
    return max(1, min(problem.columns.count, max(LEAST_RANKS, LIST_BYTES // slot_bytes)))


def _bounds_and_terms(problem: Problem) -> tuple[Tensor, Tensor]:
    """(3, padded) and (8 and lists, padded), one after the other: the scan finds lists by it."""
    rows = problem.rows
    spec = problem.spec
    assert isinstance(spec, PairSpec)
    lists = 1 + 2 * most_ranks(problem) if isinstance(spec.weighting, Triplet) else 0
    both = torch.empty(3 + 8 + lists, rows.padded, dtype=rows.dtype, device=rows.device)
    return both[:3], both[3:]


def _list_positives(problem: Problem, bounds: Tensor, terms: Tensor, passed: int) -> None:
    rows = problem.rows
    sides, others, constants = arguments(problem)
    slots = most_ranks(problem)
    if rows.count:
        largest = (problem.last - problem.first).amax()
        problem.coefficients[7] = (largest - passed).clamp(0, slots)
    problem.coefficients[8] = passed
    thresholds, numbers = terms[9::2], terms[10::2]
    thresholds.fill_(torch.inf)
    numbers.zero_()
    list_kernel[(triton.cdiv(rows.padded, problem.tiles.scan.block_m),)](
        *sides,
        rows.ids,
        problem.first,
        problem.last,
        *others,
        bounds,
        terms,
        rows.count,
        rows.stride,
        rows.padded,
        **constants,
    )


def _bound_negatives(bounds: Tensor, mining: Mining, least: Tensor, most: Tensor | None) -> None:
    """Kept negatives lie above the first row and below the second, both strictly."""
    if isinstance(mining, MultiSimilarityMining):
        bounds[0] = least - mining.epsilon
    elif isinstance(mining, SemiHardMining):
        bounds[0] = least - mining.margin
        bounds[1] = least
    elif isinstance(mining, ThresholdMining):
        bounds[0] = mining.negative_above
    elif most is not None:
        bounds[0] = _beside(most, -1)
    else:
        bounds[0] = -torch.inf


def _bound_positives(bounds: Tensor, mining: Mining, least: Tensor, most: Tensor) -> None:
    """Kept positives lie below the third row, strictly."""
    if isinstance(mining, MultiSimilarityMining):
        bounds[2] = most + mining.epsilon
    elif isinstance(mining, HardestMining):
        bounds[2] = _beside(least, 1)
    elif isinstance(mining, ThresholdMining):
        bounds[2] = mining.positive_below


def _beside(x: Tensor, sign: int) -> Tensor:
    """A number under x, or over it, by some rounding errors of a similarity: kernels that divide
    the depth differently need not find the hardest pair at the same bits. So near are ties."""
    slack = 2.0**-19 if x.dtype == torch.float32 else 2.0**-46
    return x + sign * slack * x.abs().clamp(min=1)
