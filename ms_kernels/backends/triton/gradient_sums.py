"""What every gradient kernel does with its sums: operands, partial sums, the way to dx."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.similarity import round_to_tf32


@triton.jit
def as_operand(weight, column_scale, like, MODE: tl.constexpr, WEIGHT_SCALE: tl.constexpr):
    """Weights of the copies' rows; WEIGHT_SCALE lifts them into the range of float16."""
    weight *= column_scale[None, :] * WEIGHT_SCALE
    if MODE == "tf32":  # tensor cores would cut it
        weight = round_to_tf32(weight)
    return weight.to(like)


@triton.jit
def scaled(sums, scale, WEIGHT_SCALE: tl.constexpr, SCALED: tl.constexpr):
    """Without what lifts weights; times `scale` (1) of the loss's reduction if SCALED."""
    factor = tl.full((), 1 / WEIGHT_SCALE, sums.dtype)
    if SCALED:
        factor *= tl.load(scale)
    return sums * factor


@triton.jit
def store_gradient(
    sums,  # (rows, depth)
    dx,  # (N, D) out, in the caller's order
    order,
    divisor,  # norm of the rows
    poison,  # (1) or (N): NaN for rows whose gradient is not a number
    poison_stride,
    rows,
    depth,
    N,
    D,
):
    present = rows < N
    sample = tl.load(order + rows, mask=present, other=0).to(tl.int64)
    nan = tl.load(poison + sample * poison_stride, mask=present, other=0)
    nan = tl.where(nan == nan, 0, nan)
    nan += tl.where(divisor == divisor, 0, divisor)
    at = dx + sample[:, None] * D + depth[None, :]
    tl.store(at, sums + nan[:, None], mask=present[:, None] & (depth < D)[None, :])


@triton.jit(do_not_specialize=["first_row", "height", "parts", "N"])
def sum_parts_kernel(
    partial,  # (parts, height, stride)
    copy,
    scale,
    norm,
    order,
    loss_scale,
    poison,
    dx,
    first_row,
    height,
    parts,
    N,
    D,
    stride,
    poison_stride,
    NORMALIZE: tl.constexpr,
    SCALED: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One program adds up the parts of ROWS rows, in order, and takes them through their
    normalisation."""
    local = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    rows = tl.where(local < height, first_row + local, N)
    present = rows < N
    factor = tl.load(scale + rows, mask=present, other=0)
    divisor = tl.load(norm + rows, mask=present, other=1)
    along = tl.zeros((ROWS, BLOCK_D), partial.dtype.element_ty)
    for start in range(0, stride, BLOCK_D):
        depth = start + tl.arange(0, BLOCK_D)
        inside = present[:, None] & (depth < stride)[None, :]
        at = local.to(tl.int64)[:, None] * stride + depth[None, :]
        sums = tl.zeros((ROWS, BLOCK_D), partial.dtype.element_ty)
        for part in range(parts):
            sums += tl.load(
                partial + part * height.to(tl.int64) * stride + at, mask=inside, other=0
            )
        sums = scaled(sums, loss_scale, 1, SCALED)
        if NORMALIZE:
            x = tl.load(
                copy + rows.to(tl.int64)[:, None] * stride + depth[None, :], mask=inside, other=0
            )
            along += x.to(sums.dtype) * sums
            # Where the first part was.
            tl.store(partial + at, sums, mask=inside)
        else:
            store_gradient(sums, dx, order, divisor, poison, poison_stride, rows, depth, N, D)
    if NORMALIZE:
        tl.debug_barrier()  # what another thread wrote may be read
        projection = tl.sum(along, 1) * factor * factor
        for start in range(0, stride, BLOCK_D):
            depth = start + tl.arange(0, BLOCK_D)
            inside = present[:, None] & (depth < stride)[None, :]
            at = local.to(tl.int64)[:, None] * stride + depth[None, :]
            sums = tl.load(partial + at, mask=inside, other=0)
            x = tl.load(
                copy + rows.to(tl.int64)[:, None] * stride + depth[None, :], mask=inside, other=0
            )
            sums = (sums - projection[:, None] * x.to(sums.dtype)) / divisor[:, None]
            store_gradient(sums, dx, order, divisor, poison, poison_stride, rows, depth, N, D)
