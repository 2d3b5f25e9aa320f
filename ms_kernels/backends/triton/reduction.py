"""Reduction: from the losses of all anchors to that of a step, and the scale of its gradient."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["N"])
def reduce_kernel(
    row_loss,  # (N)
    valid,  # (N) int64: 1 where an anchor keeps a pair
    loss,  # () out, in any dtype
    scale,  # (1) out: of the gradient of the sum of losses
    poison,  # (1) out: 0, or NaN if a loss is
    N,
    REDUCTION: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """One program, so that the sum has one order."""
    T: tl.constexpr = row_loss.dtype.element_ty
    sums = tl.zeros((BLOCK,), tl.float64)
    broken = tl.zeros((BLOCK,), tl.int32)
    count = tl.zeros((BLOCK,), tl.int32)
    for start in range(0, N, BLOCK):
        i = start + tl.arange(0, BLOCK)
        some = tl.load(row_loss + i, mask=i < N, other=0)
        sums += some.to(tl.float64)
        broken |= (some != some).to(tl.int32)
        if REDUCTION == "mean_valid":
            count += tl.load(valid + i, mask=i < N, other=0).to(tl.int32)
    if REDUCTION == "mean":
        divisor = tl.maximum(N, 1).to(tl.float64)
    elif REDUCTION == "mean_valid":
        divisor = tl.maximum(tl.sum(count), 1).to(tl.float64)
    else:
        tl.static_assert(REDUCTION == "sum", "reduce_kernel: unknown reduction")
        divisor = tl.full((), 1, tl.float64)
    total = tl.sum(sums) / divisor
    if loss.dtype.element_ty == tl.float64:
        tl.store(loss, total)
    else:  # to half by way of float32: no machine has the other way
        tl.store(loss, total.to(tl.float32).to(loss.dtype.element_ty))
    tl.store(scale, (1 / divisor).to(T))
    tl.store(poison, tl.where(tl.max(broken) > 0, float("nan"), 0).to(T))
