"""Lists of the triplet loss, and the rounds in which they are made: see `ranked.py`."""

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from ms_kernels.backends.triton.launch import arguments
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.ranked import count_kernel, list_kernel
from ms_kernels.backends.triton.tape import launch_kernel

# Of the lists of all anchors, and the fewest ranks there are.
LIST_BYTES, LEAST_RANKS = 48 << 20, 64
COUNTED = 128  # rows of a program


class Lists(NamedTuple):
    """What ranked rules list for each anchor; of the others one stand-in, which is never read."""

    thresholds: Tensor  # (ranks, padded)
    reached: Tensor  # (ranks, padded) int32: negatives that reach a threshold
    pulls: Tensor  # (ranks, padded): what a positive weighs, once the terms are known
    first_rank: Tensor  # (padded) int32
    in_use: Tensor  # (1) int32: ranks that any anchor fills


def no_lists(stand_in: Tensor) -> Lists:
    return Lists(*[stand_in] * 5)


def with_pulls(lists: Lists, factor: Tensor) -> Lists:
    """What the listed positives weigh, from the factor of each anchor (padded): 0 of one that
    nothing reaches, whatever the factor. Multiplied here, for a kernel lacks the registers."""
    pulls = lists.reached * factor
    return lists._replace(pulls=pulls.masked_fill_(lists.reached == 0, 0))


def add_counts(problem: Problem, lists: Lists, pos_moment: Tensor) -> None:
    """How many triplets of each sample violate the margin, in this round: into (N) moments."""
    rows = problem.rows
    launch_kernel(
        count_kernel,
        (triton.cdiv(rows.padded, COUNTED),),
        lists.reached,
        lists.in_use,
        rows.order,
        pos_moment,
        rows.count,
        rows.padded,
        BLOCK=COUNTED,
    )


def most_ranks(problem: Problem) -> int:
    """Ranks of a round: as many as LIST_BYTES hold, or LEAST_RANKS."""
    rank_bytes: int = (2 * problem.rows.dtype.itemsize + 4) * problem.rows.padded
    return max(1, min(problem.columns.count, max(LEAST_RANKS, LIST_BYTES // rank_bytes)))


def rounds(problem: Problem) -> range:
    """How many candidates of each class are passed by before each round: sums over kept pairs, and
    gradients, are those of all rounds together. Rules without lists have one."""
    if not problem.ranked:
        return range(1)
    return range(0, max(1, problem.columns.count), most_ranks(problem))


def list_positives(problem: Problem, pos_below: Tensor, passed: int) -> Lists:
    """Lists of the rows' kept positives, which are below `pos_below`; nothing reaches them yet."""
    rows = problem.rows
    sides, others, constants = arguments(problem)
    ranks = most_ranks(problem)
    integers: Any = {"dtype": torch.int32, "device": rows.device}
    shape = (ranks, rows.padded)
    thresholds = torch.full(shape, torch.inf, dtype=rows.dtype, device=rows.device)
    lists = Lists(
        thresholds,
        torch.zeros(shape, **integers),
        thresholds,  # until `with_pulls`
        torch.empty(rows.padded, **integers),
        torch.zeros(1, **integers),
    )
    if rows.count:
        largest = (problem.last - problem.first).amax().view(1)
        lists.in_use.copy_((largest - passed).clamp_(0, ranks))
    launch_kernel(
        list_kernel,
        (triton.cdiv(rows.padded, problem.tiles.scan.block_m),),
        *sides,
        rows.ids,
        problem.first,
        problem.last,
        *others,
        pos_below,
        lists.thresholds,
        lists.first_rank,
        lists.in_use,
        passed,
        rows.count,
        rows.stride,
        rows.padded,
        **constants,
    )
    return lists
