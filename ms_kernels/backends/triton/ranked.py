"""The triplet loss compares every kept negative of an anchor with every kept positive: an anchor
lists a threshold for each positive, and counts the negatives that reach it.

`thresholds` and `reached` are (ranks, padded), the second of whole numbers, whose sums are the same
in any order; `pulls` are those times the anchor's factor. A candidate's rank is its place among
those of its class, less what earlier rounds had: it is its place in label order less the anchor's
`first_rank`. `ranks_in_use` (1) says how many rows of the lists any anchor fills.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.coefficients import margin
from ms_kernels.backends.triton.mining_rules import is_positive
from ms_kernels.backends.triton.pairs import distinct, positive_range, same_class
from ms_kernels.backends.triton.similarity import similarity
from ms_kernels.backends.triton.terms import (
    NEG_ABOVE,
    NEG_BELOW,
    NEG_FACTOR,
    across,
    term,
)


@triton.jit
def row_of(ranked, k, padded):
    """Entries of rank k."""
    return ranked + (tl.zeros((), tl.int64) + k) * padded


@triton.jit
def compare(sim, kept, thresholds, reached, ranks_in_use, at, padded, AS_ROW: tl.constexpr):
    """Sum of what the kept negatives of each anchor exceed its thresholds by; adds the numbers of
    those that reach one to the lists."""
    axis: tl.constexpr = 1 if AS_ROW else 0
    total = tl.zeros((sim.shape[1 - axis],), sim.dtype)
    for k in range(tl.load(ranks_in_use)):
        threshold = across(tl.load(row_of(thresholds, k, padded) + at), AS_ROW)
        reaches = kept & (sim >= threshold)
        total += tl.sum(tl.where(reaches, sim - threshold, 0), axis)
        number = tl.sum(reaches.to(tl.int32), axis)
        tl.atomic_add(row_of(reached, k, padded) + at, number, mask=number > 0)
    return total


@triton.jit
def add_negatives(
    weight,
    sim,
    terms,
    thresholds,
    ranks_in_use,
    at,
    padded,
    AS_ROW: tl.constexpr,
    TWO_SIDED: tl.constexpr,
):
    """Adds what one side's anchors give their negatives: a factor for each threshold reached."""
    for k in range(tl.load(ranks_in_use)):
        # Loaded anew for each rank: of columns they would not stay in registers.
        reaches = sim >= across(tl.load(row_of(thresholds, k, padded) + at), AS_ROW)
        reaches &= sim > term(terms, NEG_ABOVE, at, padded, AS_ROW)
        if TWO_SIDED:
            reaches &= sim < term(terms, NEG_BELOW, at, padded, AS_ROW)
        weight += tl.where(reaches, term(terms, NEG_FACTOR, at, padded, AS_ROW), 0)
    return weight


@triton.jit
def add_positives(
    weight, pulls, first_rank, ranks_in_use, at, others, padded, AS_ROW: tl.constexpr
):
    """The same of positives: what each of them weighs, and 0 of one that is not kept."""
    for k in range(tl.load(ranks_in_use)):
        place = across(tl.load(first_rank + at), AS_ROW)
        mine = place == across(others.to(tl.int32) - k, not AS_ROW)
        pull = tl.load(row_of(pulls, k, padded) + at)
        weight -= tl.where(mine, across(pull, AS_ROW), 0)
    return weight


@triton.jit(do_not_specialize=["passed", "N"])
def list_kernel(
    x,
    row_scale,
    row_ids,
    first,
    last,
    r,
    column_scale,
    column_ids,
    coefficients,
    pos_below,  # (padded): a kept positive is below
    thresholds,  # (ranks, padded) out, infinite before
    first_rank,  # (padded) out
    ranks_in_use,
    passed,  # candidates of each class that earlier rounds had
    N,
    depth,
    padded,
    MODE: tl.constexpr,
    DISTANCE: tl.constexpr,
    ID_MODE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program lists the thresholds S - margin of the kept positives of BLOCK_M anchors."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    low, high = positive_range(first, last, rows, N)
    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    below = tl.load(pos_below + rows)
    place = row_first + passed
    tl.store(first_rank + rows, place)
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        sim = similarity(
            x, row_scale, rows, r, column_scale, columns, depth, MODE, DISTANCE, BLOCK_K
        )
        pair = same_class(row_first, row_last, columns)
        pair &= distinct(rows, columns, row_ids, column_ids, ID_MODE)
        keep = is_positive(sim, pair, coefficients) & (sim < below[:, None])
        rank = columns[None, :] - place[:, None]
        keep &= (rank >= 0) & (rank < tl.load(ranks_in_use)) & (rows < N)[:, None]
        at = row_of(thresholds, rank, padded) + rows[:, None]
        tl.store(at, sim - margin(coefficients), mask=keep)


@triton.jit(do_not_specialize=["N"])
def count_kernel(
    reached,  # (ranks, padded)
    ranks_in_use,
    order,  # (padded) the sample of each row
    pos_moment,  # (N) in and out, in the order of samples
    N,
    padded,
    BLOCK: tl.constexpr,
):
    """One program adds to BLOCK samples how many negatives reach their thresholds."""
    rows = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = rows < N
    at = pos_moment + tl.load(order + rows, mask=present, other=0)
    number = tl.load(at, mask=present, other=0)
    for k in range(tl.load(ranks_in_use)):
        more = tl.load(row_of(reached, k, padded) + rows, mask=present, other=0)
        number += more.to(number.dtype)
    tl.store(at, number, mask=present)
