"""Longer rows, whose products are less half the square of a distance: see `launch_longer.py`."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.rows import power_of_two
from ms_kernels.backends.triton.softplus import INFINITY

# Numbers before those of the row: less half its square, and 1; of a candidate the other way round.
ADDED = tl.constexpr(2)


@triton.jit
def median(x, row_stride, column_stride, count, d, D, SAMPLED: tl.constexpr, T: tl.constexpr):
    """(BLOCK_D) medians of SAMPLED rows of `count`, of fewer those rows several times; 0 where half
    of them are not finite."""
    k = tl.arange(0, SAMPLED)
    row = k.to(tl.int64) * count // SAMPLED
    at = x + row[:, None] * row_stride + d.to(tl.int64)[None, :] * column_stride
    value = tl.load(at, mask=(d < D)[None, :] & (count > 0), other=0).to(T)
    value = tl.where(tl.abs(value) < INFINITY, value, INFINITY)
    below = value[None, :, :] < value[:, None, :]
    below |= (value[None, :, :] == value[:, None, :]) & (k[None, :] < k[:, None])[:, :, None]
    rank = tl.sum(below.to(tl.int32), 1)
    found = tl.sum(tl.where(rank == (SAMPLED - 1) // 2, value, 0), 0)
    return tl.where(found < INFINITY, found, 0)


@triton.jit(do_not_specialize=["N"])
def middle_kernel(
    x,
    row_stride,
    column_stride,
    skipped,  # numbers before those of a row
    middle,  # (D) out
    N,
    D,
    SAMPLED: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program finds the middle of BLOCK_D columns."""
    d = tl.program_id(0) * BLOCK_D + tl.arange(0, BLOCK_D)
    T: tl.constexpr = middle.dtype.element_ty
    first = x + skipped * column_stride
    found = median(first, row_stride, column_stride, N, d, D, SAMPLED, T)
    tl.store(middle + d, found, mask=d < D)


@triton.jit(do_not_specialize=["N"])
def longer_kernel(
    embeddings,
    row_stride,
    column_stride,
    middle,  # (D), if SHIFTED
    longer,  # (N, ADDED + D) out
    norm,  # (N) out: what the gradient is divided by: infinite for rows without a direction, whose
    # norm is under 1e-12
    N,
    D,
    NORMALIZE: tl.constexpr,
    SHIFTED: tl.constexpr,
    CANDIDATE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program writes ROWS rows, unit ones if NORMALIZE, less the middle. One that is not finite
    gets a square that is none."""
    T: tl.constexpr = longer.dtype.element_ty
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < N
    source = embeddings + row[:, None] * row_stride
    largest = tl.zeros((ROWS, BLOCK_D), T)
    broken = tl.zeros((ROWS, BLOCK_D), tl.int32)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)
        inside = present[:, None] & (d < D)[None, :]
        x = tl.load(source + d[None, :] * column_stride, mask=inside, other=0).to(T)
        finite = tl.abs(x) < INFINITY
        broken = tl.where(finite, broken, 1)
        largest = tl.maximum(largest, tl.where(finite, tl.abs(x), 0))
    is_finite = tl.max(broken, 1) == 0
    down = tl.full((ROWS,), 1, T)
    length = down
    divisor = down
    if NORMALIZE:  # by a power of two first, so that no square overflows
        down, up = power_of_two(tl.max(largest, 1))
        squares = tl.zeros((ROWS, BLOCK_D), tl.float64)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D).to(tl.int64)
            inside = (present & is_finite)[:, None] & (d < D)[None, :]
            x = tl.load(source + d[None, :] * column_stride, mask=inside, other=0).to(T)
            x = (x * down[:, None]).to(tl.float64)
            squares += x * x
        floor = tl.full((ROWS,), 1e-12, T)
        length = tl.sqrt(tl.sum(squares, 1)).to(T)
        floored = length * up < floor
        divisor = tl.where(floored, INFINITY, length * up)
        length = tl.where(floored, floor / up, length)  # of the scaled rows
    squares = tl.zeros((ROWS, BLOCK_D), tl.float64)
    target = longer + row[:, None] * (ADDED + D)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)
        inside = present[:, None] & (d < D)[None, :]
        x = tl.load(source + d[None, :] * column_stride, mask=inside, other=0).to(T)
        if NORMALIZE:
            x = x * down[:, None] / length[:, None]
        if SHIFTED:
            x -= tl.load(middle + d, mask=d < D, other=0)[None, :]
        x = tl.where(inside & is_finite[:, None], x, 0)
        tl.store(target + ADDED + d[None, :], x, mask=inside)
        squares += x.to(tl.float64) * x.to(tl.float64)
    square = (-0.5 * tl.sum(squares, 1)).to(T)
    square = tl.where(is_finite, square, float("nan"))
    first = longer + row * (ADDED + D)
    tl.store(first + (1 if CANDIDATE else 0), square, mask=present)
    tl.store(first + (0 if CANDIDATE else 1), tl.full((ROWS,), 1, T), mask=present)
    tl.store(norm + row, divisor, mask=present)


@triton.jit(do_not_specialize=["N"])
def shorter_kernel(
    gradient,  # (N, ADDED + D) of the longer rows
    longer,
    middle,  # (D): with it they are unit rows, if NORMALIZE
    norm,
    dx,  # (N, D) out, of the rows
    N,
    D,
    NORMALIZE: tl.constexpr,
    CANDIDATE: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program takes the gradients of ROWS rows back: sum_j w_ij (r_j - x_i), where the sum of
    weights lies beside that of rows; through the normalisation."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < N
    first = row * (ADDED + D)
    weight = tl.load(gradient + first + (1 if CANDIDATE else 0), mask=present, other=0)
    at = ADDED + first[:, None]
    along = tl.zeros((ROWS, BLOCK_D), weight.dtype)
    if NORMALIZE:
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
            inside = present[:, None] & (d < D)
            x = tl.load(longer + at + d, mask=inside, other=0)
            g = tl.load(gradient + at + d, mask=inside, other=0) - weight[:, None] * x
            along += g * (x + tl.load(middle + d, mask=d < D, other=0))
    projection = tl.sum(along, 1)
    divisor = tl.load(norm + row, mask=present, other=1)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
        inside = present[:, None] & (d < D)
        x = tl.load(longer + at + d, mask=inside, other=0)
        g = tl.load(gradient + at + d, mask=inside, other=0) - weight[:, None] * x
        if NORMALIZE:
            unit = x + tl.load(middle + d, mask=d < D, other=0)
            g = (g - projection[:, None] * unit) / divisor[:, None]
        tl.store(dx + row[:, None] * D + d, g, mask=inside)
