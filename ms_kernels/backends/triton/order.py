"""Order of the samples by label, and where each row's positives lie in it."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N"])
def rank_kernel(
    labels,  # (N) int64
    order,  # (N) out: the sample at each place
    first,  # (N) out: in that order, the range of places with the same label
    last,
    N,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,  # labels that are compared at once
):
    """One program ranks BLOCK samples by counting lesser labels, and equal ones before them."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(labels + i, mask=i < N, other=0)
    less = tl.zeros((BLOCK,), tl.int32)
    equal = less
    before = less
    for start in range(0, N, WIDE):
        j = start + tl.arange(0, WIDE)
        valid = j < N
        other = tl.load(labels + j, mask=valid, other=0)
        same = (other[None, :] == own[:, None]) & valid[None, :]
        less += tl.sum(((other[None, :] < own[:, None]) & valid[None, :]).to(tl.int32), 1)
        equal += tl.sum(same.to(tl.int32), 1)
        before += tl.sum((same & (j[None, :] < i[:, None])).to(tl.int32), 1)
    place = less + before
    tl.store(order + place, i, mask=i < N)
    tl.store(first + place, less, mask=i < N)
    tl.store(last + place, less + equal, mask=i < N)


@triton.jit(do_not_specialize=["N", "M"])
def range_kernel(
    labels,  # (N) int64
    order,  # (N)
    others,  # (M) int64
    first,  # (N) out: places of the equal labels among the others, sorted
    last,
    N,
    M,
    BLOCK: tl.constexpr,
    WIDE: tl.constexpr,  # labels that are compared at once
):
    """One program counts the lesser and the equal labels of the other side for BLOCK samples."""
    k = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    own = tl.load(labels + tl.load(order + k, mask=k < N, other=0), mask=k < N, other=0)
    less = tl.zeros((BLOCK,), tl.int32)
    equal = less
    for start in range(0, M, WIDE):
        j = start + tl.arange(0, WIDE)
        valid = j < M
        other = tl.load(others + j, mask=valid, other=0)
        less += tl.sum(((other[None, :] < own[:, None]) & valid[None, :]).to(tl.int32), 1)
        equal += tl.sum(((other[None, :] == own[:, None]) & valid[None, :]).to(tl.int32), 1)
    tl.store(first + k, less, mask=k < N)
    tl.store(last + k, less + equal, mask=k < N)
