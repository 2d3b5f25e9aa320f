"""Hardest scan: the k hardest negatives of each anchor, where the k-th bounds what mining keeps."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.pairs import GIVEN, distinct, same_class
from ms_kernels.backends.triton.similarity import similarity
from ms_kernels.backends.triton.softplus import INFINITY


@triton.jit
def empty_lists(ROWS: tl.constexpr, SLOTS: tl.constexpr, K: tl.constexpr, T: tl.constexpr):
    """K places for each row; those up to SLOTS, a power of two, are never the least."""
    slots = tl.zeros((ROWS, SLOTS), tl.int32) + tl.arange(0, SLOTS)[None, :]
    return tl.where(slots < K, -INFINITY, INFINITY).to(T)


@triton.jit
def with_values(lists, values):
    """Lists (rows, SLOTS) of the greatest of what they hold and of values (rows, anything)."""
    slots = tl.arange(0, lists.shape[1])[None, :]
    places = tl.arange(0, values.shape[1])[None, :]
    top, least = tl.max(values, 1), tl.min(lists, 1)
    # Greatest first: a row takes at most K turns, and the turns of later tiles are few.
    while tl.max((top > least).to(tl.int32)) > 0:
        enters = (top > least)[:, None]
        slot, place = tl.argmin(lists, 1), tl.argmax(values, 1)
        lists = tl.where(enters & (slots == slot[:, None]), top[:, None], lists)
        values = tl.where(enters & (places == place[:, None]), -INFINITY, values)
        top, least = tl.max(values, 1), tl.min(lists, 1)
    return lists


@triton.jit(do_not_specialize=["N", "M", "column_blocks", "tiles", "padded"])
def hardest_scan_kernel(
    x,
    row_scale,
    row_ids,
    first,
    last,
    r,
    column_scale,
    column_ids,
    lists,  # (splits, padded N, SLOTS) out
    N,
    M,
    depth,
    column_blocks,
    tiles,  # blocks of columns of one program
    padded,
    MODE: tl.constexpr,
    DISTANCE: tl.constexpr,
    ID_MODE: tl.constexpr,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program lists the hardest of BLOCK_M anchors among `tiles` blocks of columns."""
    T: tl.constexpr = row_scale.dtype.element_ty
    split = tl.program_id(1)
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    found = empty_lists(BLOCK_M, SLOTS, K, T)
    for tile in range(split * tiles, tl.minimum(split * tiles + tiles, column_blocks)):
        columns = tile * BLOCK_N + tl.arange(0, BLOCK_N)
        sim = similarity(
            x, row_scale, rows, r, column_scale, columns, depth, MODE, DISTANCE, BLOCK_K
        )
        pair = (columns < M)[None, :] & (rows < N)[:, None]
        pair &= same_class(row_first, row_last, columns) == 0
        if ID_MODE == GIVEN:
            pair &= distinct(rows, columns, row_ids, column_ids, ID_MODE)
        found = with_values(found, tl.where(pair & (sim < INFINITY), sim, -INFINITY))
    at = (split.to(tl.int64) * padded + rows)[:, None] * SLOTS + tl.arange(0, SLOTS)[None, :]
    tl.store(lists + at, found)


@triton.jit(do_not_specialize=["splits", "padded"])
def kth_hardest_kernel(
    lists,  # (splits, padded N, SLOTS)
    hardest_negative,  # (padded N) out: the K-th, -inf of fewer
    splits,
    padded,
    K: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,  # divides padded N
):
    """One program joins the lists of BLOCK anchors."""
    T: tl.constexpr = lists.dtype.element_ty
    rows = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    slots = tl.arange(0, SLOTS)[None, :]
    found = empty_lists(BLOCK, SLOTS, K, T)
    for split in range(0, splits):
        more = tl.load(lists + (split * padded + rows)[:, None] * SLOTS + slots)
        found = with_values(found, tl.where(slots < K, more, -INFINITY))
    tl.store(hardest_negative + rows, tl.min(found, 1))
