"""Which pairs of a tile are positive, negative, or no pairs at all.

Samples are sorted by label, so a row's positives are a range [first, last) of columns. ID_MODE
says which pairs are the same sample: NO_IDS none, DIAGONAL those of equal places (self mode),
GIVEN those of equal ids, and all of an ignored sample.
"""

import triton
import triton.language as tl

from ms_kernels.reference import IGNORED

NO_IDS, DIAGONAL, GIVEN = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
_IGNORED = tl.constexpr(IGNORED)


@triton.jit
def given(pointer, at, GIVEN_POINTER: tl.constexpr):
    """What a pointer holds that only some kernels are given; others have a stand-in, never read."""
    tl.static_assert(GIVEN_POINTER, "this kernel was given a stand-in for the pointer")
    return tl.load(pointer + at)


@triton.jit
def same_class(first, last, columns):
    return (columns[None, :] >= first[:, None]) & (columns[None, :] < last[:, None])


@triton.jit
def different(rows, columns, row_ids, column_ids, ID_MODE: tl.constexpr):
    """False for the pairs that are one sample."""
    other = rows[:, None] != columns[None, :]
    if ID_MODE == GIVEN:
        other = tl.load(row_ids + rows)[:, None] != tl.load(column_ids + columns)[None, :]
    if ID_MODE == NO_IDS:
        other = (rows[:, None] >= 0) & (columns[None, :] >= 0)
    return other


@triton.jit
def paired(places, ids):
    """The places, -1 of a sample that is in no pair: asked of a side alone it costs a pair
    nothing."""
    return tl.where(tl.load(ids + places) == _IGNORED, -1, places)


@triton.jit
def distinct(rows, columns, row_ids, column_ids, ID_MODE: tl.constexpr):
    """False for the pairs that are one sample, or of a sample that is in none."""
    other = different(rows, columns, row_ids, column_ids, ID_MODE)
    if ID_MODE == GIVEN:
        other &= (paired(rows, row_ids) >= 0)[:, None]
        other &= (paired(columns, column_ids) >= 0)[None, :]
    return other


@triton.jit
def positive_range(first, last, rows, N):
    """The columns that hold the positives of a block of rows, none or more."""
    low = tl.min(tl.where(rows < N, tl.load(first + rows), 0x7FFFFFFF))
    high = tl.max(tl.load(last + rows))  # 0 in the rows past N
    return low, high


@triton.jit
def positive_tiles(first, last, rows, N, BLOCK_N: tl.constexpr):
    """The first of the tiles that may hold positives of a block of rows, in self mode the diagonal
    among them, and their number. All pairs of the others are negatives, or padding."""
    low, high = positive_range(first, last, rows, N)
    low //= BLOCK_N
    return low, tl.maximum((high + BLOCK_N - 1) // BLOCK_N - low, 0)
