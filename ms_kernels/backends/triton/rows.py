"""Padded copies of the embeddings in label order, and the way back through the normalisation."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.similarity import round_to_tf32
from ms_kernels.backends.triton.softplus import INFINITY


@triton.jit
def power_of_two(magnitude):
    """2^-e for magnitudes in [2^e, 2^(e+1)), and its inverse; both are normal numbers."""
    if magnitude.dtype == tl.float64:
        e = (magnitude.to(tl.int64, bitcast=True) >> 52) & 0x7FF
        e = tl.minimum(tl.maximum(e, 1), 2045)
        down = ((2046 - e) << 52).to(tl.float64, bitcast=True)
        up = (e << 52).to(tl.float64, bitcast=True)
    else:
        e = (magnitude.to(tl.int32, bitcast=True) >> 23) & 0xFF
        e = tl.minimum(tl.maximum(e, 1), 253)
        down = ((254 - e) << 23).to(tl.float32, bitcast=True)
        up = (e << 23).to(tl.float32, bitcast=True)
    return down, up


@triton.jit(do_not_specialize=["N"])
def copy_kernel(
    embeddings,
    row_stride,
    column_stride,
    order,  # (N) the sample that goes to each row
    ids,  # (N) int64, if GIVEN_IDS
    ordered_ids,  # (padded N) out, if GIVEN_IDS: those of each row
    copy,  # (padded N, stride) out, in the operand dtype
    turned,  # the same out, if TURNED: the first two numbers of a row change places
    scale,  # (padded N) out: S_ij = copy_i . copy_j scale_i scale_j; 0 for rows that are not there
    norm,  # (padded N) out: what the gradient is divided by: infinite for rows without a direction,
    # whose norm is under 1e-12; NaN for rows that are not finite
    poisoned,  # (1) out, raised to 1 if a row is not finite
    N,
    D,
    stride,
    GIVEN_IDS: tl.constexpr,
    NORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,  # rows keep their length, else they are divided by it
    TURNED: tl.constexpr,
    ROUND: tl.constexpr,  # to tf32 numbers: of others tensor cores cut what does not fit
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program copies ROWS rows.

    With NORMALIZE their largest element is brought to [1, 2) by a power of two, so that no square
    overflows. SCALED rows stay so, half ones not rounded, and `scale` makes up for the norm of what
    was stored; others are divided by it. Rows that are not finite become 0.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < N
    sample = tl.load(order + row, mask=present, other=0).to(tl.int64)
    if GIVEN_IDS:
        tl.store(ordered_ids + row, tl.load(ids + sample, mask=present, other=0))
    source = embeddings + sample[:, None] * row_stride
    T: tl.constexpr = scale.dtype.element_ty
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
    down, up = power_of_two(tl.max(largest, 1))
    if not NORMALIZE:
        down = tl.full((ROWS,), 1, T)
    factor = tl.full((ROWS,), 1, T)
    divisor = factor
    if NORMALIZE:
        squares = tl.zeros((ROWS, BLOCK_D), tl.float64)
        for start in range(0, D, BLOCK_D):
            d = start + tl.arange(0, BLOCK_D).to(tl.int64)
            inside = (present & is_finite)[:, None] & (d < D)[None, :]
            x = tl.load(source + d[None, :] * column_stride, mask=inside, other=0).to(T)
            x *= down[:, None]
            if ROUND:
                x = round_to_tf32(x)
            x = x.to(copy.dtype.element_ty).to(tl.float64)
            squares += x * x
        floor = tl.full((ROWS,), 1e-12, T)
        length = tl.sqrt(tl.sum(squares, 1)).to(T)
        floored = length * up < floor
        divisor = tl.where(floored, INFINITY, length * up)
        # Of the scaled rows.
        length = tl.where(floored, floor / up, length)
        if SCALED:
            factor = 1 / length
    for start in range(0, stride, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)
        inside = (present & is_finite)[:, None] & (d < D)[None, :]
        x = tl.load(source + d[None, :] * column_stride, mask=inside, other=0).to(T)
        x *= down[:, None]
        if NORMALIZE and not SCALED:
            x /= length[:, None]
        if ROUND:
            x = round_to_tf32(x)
        start_of_row = row[:, None] * stride
        x = x.to(copy.dtype.element_ty)
        tl.store(copy + start_of_row + d[None, :], x, mask=(d < stride)[None, :])
        if TURNED:
            place = tl.where(d < 2, 1 - d, d)
            tl.store(turned + start_of_row + place[None, :], x, mask=(d < stride)[None, :])
    tl.store(scale + row, tl.where(present & is_finite, factor, 0))
    tl.store(norm + row, tl.where(is_finite, divisor, float("nan")))
    tl.atomic_max(poisoned + row * 0, 1, mask=present & (is_finite == 0))


@triton.jit
def through_normalisation(g, x, scale, divisor):
    """dx = (g - (g . u) u) / |x| of rows u = scale x."""
    along = tl.sum(g * x, 1) * scale * scale
    return (g - along[:, None] * x) / divisor[:, None]


@triton.jit(do_not_specialize=["N"])
def project_kernel(
    dx,  # (N, D) in and out: the gradient with respect to the unit rows, in the caller's order
    copy,
    scale,
    norm,
    order,
    N,
    D,
    stride,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program takes the gradients of ROWS rows through their normalisation."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    present = row < N
    target = dx + tl.load(order + row, mask=present, other=0).to(tl.int64)[:, None] * D
    factor, divisor = tl.load(scale + row), tl.load(norm + row)
    along = tl.zeros((ROWS, BLOCK_D), factor.dtype)
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
        inside = present[:, None] & (d < D)
        x = tl.load(copy + row[:, None] * stride + d, mask=inside, other=0).to(factor.dtype)
        along += x * tl.load(target + d, mask=inside, other=0)
    projection = tl.sum(along, 1) * factor * factor
    for start in range(0, D, BLOCK_D):
        d = start + tl.arange(0, BLOCK_D).to(tl.int64)[None, :]
        inside = present[:, None] & (d < D)
        x = tl.load(copy + row[:, None] * stride + d, mask=inside, other=0).to(factor.dtype)
        g = tl.load(target + d, mask=inside, other=0)
        tl.store(target + d, (g - projection[:, None] * x) / divisor[:, None], mask=inside)
