"""Launches the scans of the other pair losses: from a Problem to losses and terms of its rows."""

import torch
import triton
from torch import Tensor

from ms_kernels.mining_rules import (
    HardestMining,
    Mining,
    MultiSimilarityMining,
    SemiHardMining,
    ThresholdMining,
)
from ms_kernels.triton_kernels.family_finish import family_finish_kernel
from ms_kernels.triton_kernels.launch_statistics import (
    Statistics,
    arguments,
    scan_negatives,
    scan_positives,
)
from ms_kernels.triton_kernels.problem import Problem


def family_statistics(
    problem: Problem, mining: Mining, dloss: Tensor | None, workspace_bytes: int
) -> Statistics:
    """Loss and number of kept pairs of each row, and what the gradient needs for `dloss`."""
    rows = problem.rows
    sides, others, constants = arguments(problem)
    least = scan_positives(problem)
    bounds = torch.empty(3, rows.padded, dtype=rows.dtype, device=rows.device)
    bounds[1:] = torch.inf
    if isinstance(mining, HardestMining):  # negatives are bounded by their own hardest
        bounds[0] = -torch.inf
        most = scan_negatives(problem, bounds, workspace_bytes, exact=False).hardest
        _bound_negatives(bounds, mining, least, most)
    else:
        _bound_negatives(bounds, mining, least, None)
    scan = scan_negatives(problem, bounds, workspace_bytes, exact=False)
    _bound_positives(bounds, mining, least, scan.hardest)

    loss = torch.empty(rows.count, dtype=rows.dtype, device=rows.device)
    kept = torch.empty(rows.count, dtype=torch.int64, device=rows.device)
    terms = torch.empty(8, rows.padded, dtype=rows.dtype, device=rows.device)
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
        problem.options,
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
    return Statistics(None, loss, kept, terms, scan.tile_mass, None)


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
