"""Order of the samples by label, and where each row's positives lie in it.

What is past the count of rows is place 0 without positives.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N"])
def rank_kernel(
    labels,  # (N) int64
    order,  # (padded N) out: the sample at each place
    first,  # (padded N) out: in that order, the range of places with the same label
    last,
    poisoned,  # (1) out: lowered
    N,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,  # labels that are compared at once
):
    """One program ranks BLOCK samples by counting lesser labels, and equal ones before them.

    Threads count for themselves and are added up once; two counts of up to MOST_COUNTED samples
    share a number.
    """
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(labels + i, mask=i < N, other=0)
    places = tl.zeros((BLOCK, WIDE), tl.int32)
    equals = places
    for start in range(0, N, WIDE):
        j = start + tl.arange(0, WIDE)
        valid = j < N
        other = tl.load(labels + j, mask=valid, other=0)
        same = (other[None, :] == own[:, None]) & valid[None, :]
        lesser = (other[None, :] < own[:, None]) & valid[None, :]
        places += tl.where(lesser, 1, 0) + tl.where(same & (j[None, :] < i[:, None]), 1 << 16, 0)
        equals += same.to(tl.int32)
    counts, equal = tl.sum(places, 1), tl.sum(equals, 1)
    less, before = counts & 0xFFFF, counts >> 16
    present = i < N
    place = tl.where(present, less + before, i)
    tl.store(order + place, tl.where(present, i, 0))
    tl.store(first + place, tl.where(present, less, 0))
    tl.store(last + place, tl.where(present, less + equal, 0))
    if tl.program_id(0) == 0:
        tl.store(poisoned, 0)


@triton.jit(do_not_specialize=["N", "M"])
def range_kernel(
    labels,  # (N) int64
    order,  # (padded N)
    others,  # (M) int64
    first,  # (padded N) out: places of the equal labels among the others, sorted
    last,
    N,
    M,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,  # labels that are compared at once
):
    """One program counts the lesser and the equal labels of the other side for BLOCK samples, as
    `rank_kernel` does."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(labels + tl.load(order + k), mask=k < N, other=0)
    places = tl.zeros((BLOCK, WIDE), tl.int32)
    for start in range(0, M, WIDE):
        j = start + tl.arange(0, WIDE)
        valid = j < M
        other = tl.load(others + j, mask=valid, other=0)
        same = (other[None, :] == own[:, None]) & valid[None, :]
        lesser = (other[None, :] < own[:, None]) & valid[None, :]
        places += tl.where(lesser, 1, 0) + tl.where(same, 1 << 16, 0)
    counts = tl.sum(places, 1)
    less, equal = counts & 0xFFFF, counts >> 16
    tl.store(first + k, tl.where(k < N, less, 0))
    tl.store(last + k, tl.where(k < N, less + equal, 0))


@triton.jit
def places_before(sorted_labels, M, own, EQUAL: tl.constexpr):
    """How many of the sorted labels are less than each, or EQUAL to it or less."""
    low = tl.zeros(own.shape, tl.int32)
    high = low + M
    # Each step halves what is between them: of less than 2^31 labels nothing is left.
    for _ in range(32):
        middle = low + (high - low) // 2
        open_ = low < high
        label = tl.load(sorted_labels + middle, mask=open_, other=0)
        under = label <= own if EQUAL else label < own
        low = tl.where(open_ & under, middle + 1, low)
        high = tl.where(open_ & (under == 0), middle, high)
    return low


@triton.jit(do_not_specialize=["N", "M"])
def search_kernel(
    labels,  # (N) int64: by place if SORTED, else by sample
    samples,  # (N) int64: the sample at each place, if SORTED
    order,  # (padded N) out if SORTED, else in
    sorted_labels,  # (M) int64
    first,  # (padded N) out: places of the equal labels among the sorted ones
    last,
    poisoned,  # (1) out if SORTED: lowered
    N,
    M,
    SORTED: tl.constexpr,  # the labels are the sorted ones
    BLOCK: tl.constexpr,
):
    """One program searches for the labels of BLOCK places."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    present = k < N
    if SORTED:
        sample = tl.load(samples + k, mask=present, other=0).to(tl.int32)
        tl.store(order + k, sample)
        at = k
        if tl.program_id(0) == 0:
            tl.store(poisoned, 0)
    else:
        at = tl.load(order + k)
    own = tl.load(labels + at, mask=present, other=0)
    tl.store(first + k, tl.where(present, places_before(sorted_labels, M, own, False), 0))
    tl.store(last + k, tl.where(present, places_before(sorted_labels, M, own, True), 0))
