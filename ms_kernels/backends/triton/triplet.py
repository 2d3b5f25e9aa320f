"""The triplet loss compares every kept negative of an anchor with every kept positive: an anchor
lists a threshold for each positive, and counts the negatives that reach it.

`lists` points into the terms of the anchors (`weights.py`), 2 arrays for each slot: thresholds, and
numbers, which are whole, so that their sums are the same in any order. A candidate's slot is its
place within its class, less what earlier rounds had. `coefficients` has the number of slots in use
at 7 and what is passed at 8.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.multi_similarity import is_positive
from ms_kernels.backends.triton.pairs import distinct, positive_range, same_class
from ms_kernels.backends.triton.similarity import similarity

# Arrays of the terms before the lists: those of every loss, and each anchor's first slot's place.
FIRST_SLOT, LISTS = tl.constexpr(8), tl.constexpr(9)


@triton.jit
def slots_in_use(coefficients):
    return tl.load(coefficients + 7).to(tl.int32)


@triton.jit
def list_of(terms, k, padded):
    """Thresholds of slot k; the numbers follow."""
    wide = tl.zeros((), tl.int64) + k
    return terms + (LISTS + 2 * wide) * padded


@triton.jit
def compare(sim, kept, terms, at, padded, coefficients, AS_ROW: tl.constexpr):
    """Sum of what the kept negatives of each anchor exceed its thresholds by, and the greatest
    number of those reached; adds the numbers to the lists."""
    axis: tl.constexpr = 1 if AS_ROW else 0
    total = tl.zeros((sim.shape[1 - axis],), sim.dtype)
    most = tl.zeros((), tl.int32)
    for k in range(slots_in_use(coefficients)):
        place = list_of(terms, k, padded) + at
        threshold = side_of(tl.load(place), AS_ROW)
        reaches = kept & (sim >= threshold)
        total += tl.sum(tl.where(reaches, sim - threshold, 0), axis)
        number = tl.sum(reaches.to(tl.int32), axis)
        tl.atomic_add(place + padded, number.to(sim.dtype), mask=number > 0)
        most = tl.maximum(most, tl.max(number))
    return total, most


@triton.jit
def add_negatives(weight, sim, terms, at, padded, coefficients, AS_ROW: tl.constexpr):
    """Adds what one side's anchors give their negatives: a factor for each threshold reached."""
    for k in range(slots_in_use(coefficients)):
        # Loaded anew for each slot: of columns they would not stay in registers.
        reaches = sim >= side_of(tl.load(list_of(terms, k, padded) + at), AS_ROW)
        reaches &= sim > side_of(tl.load(terms + at), AS_ROW)
        reaches &= sim < side_of(tl.load(terms + 5 * padded + at), AS_ROW)
        weight += tl.where(reaches, side_of(tl.load(terms + 4 * padded + at), AS_ROW), 0)
    return weight


@triton.jit
def add_positives(weight, terms, at, others, padded, coefficients, AS_ROW: tl.constexpr):
    """The same of positives: what their slots hold, numbers times the factor by now, and 0 of one
    that is not kept."""
    for k in range(slots_in_use(coefficients)):
        place = tl.load(terms + FIRST_SLOT * padded + at).to(tl.int32)
        mine = side_of(place, AS_ROW) == side_of(others.to(tl.int32) - k, not AS_ROW)
        pull = tl.load(list_of(terms, k, padded) + padded + at)
        weight -= tl.where(mine, side_of(pull, AS_ROW), 0)
    return weight


@triton.jit
def side_of(x, AS_ROW: tl.constexpr):
    """A vector, shaped to broadcast over a tile of rows by columns."""
    return x[:, None] if AS_ROW else x[None, :]


@triton.jit(do_not_specialize=["N"])
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
    bounds,  # (3, padded): a kept positive is below the last
    terms,  # lists out, cleared before
    N,
    depth,
    padded,
    MODE: tl.constexpr,
    ID_MODE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program lists the thresholds S - margin of the kept positives of BLOCK_M anchors."""
    T: tl.constexpr = row_scale.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    low, high = positive_range(first, last, rows, N)
    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    pos_below = tl.load(bounds + 2 * padded + rows)
    place = row_first + tl.load(coefficients + 8).to(tl.int32)
    tl.store(terms + FIRST_SLOT * padded + rows, place.to(T))
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        sim = similarity(x, row_scale, rows, r, column_scale, columns, depth, MODE, BLOCK_K)
        pair = same_class(row_first, row_last, columns)
        pair &= distinct(rows, columns, row_ids, column_ids, ID_MODE)
        keep = is_positive(sim, pair, coefficients) & (sim < pos_below[:, None])
        slot = columns[None, :] - place[:, None]
        keep &= (slot >= 0) & (slot < slots_in_use(coefficients)) & (rows < N)[:, None]
        at = list_of(terms, slot, padded) + rows[:, None]
        tl.store(at, sim - tl.load(coefficients + 6), mask=keep)
