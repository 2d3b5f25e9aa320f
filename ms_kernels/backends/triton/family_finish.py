"""Positive finish of the other pair losses: the last look at an anchor, and its terms."""

import triton
import triton.language as tl

from ms_kernels.backends.triton.family import (
    BINOMIAL,
    CONTRASTIVE,
    NT_XENT,
    TRIPLET,
    below_peak,
    finish,
    negative_result,
    positive_exponent,
    sigmoid,
)
from ms_kernels.backends.triton.multi_similarity import INFINITY, is_positive, softplus
from ms_kernels.backends.triton.pairs import distinct, positive_range, same_class
from ms_kernels.backends.triton.similarity import similarity


@triton.jit(do_not_specialize=["N", "M"])
def family_finish_kernel(
    x,
    row_scale,
    row_norm,
    row_ids,
    first,
    last,
    order,
    r,
    column_scale,
    column_ids,
    poisoned,  # (1): a candidate is not finite
    coefficients,
    bounds,  # (3, padded): a kept negative is above, below; a kept positive is below
    hardest_negative,
    negative_sum,
    neg_kept,
    dloss,  # (N) incoming gradient of each loss, in the caller's order
    terms,  # (8, padded) out: see `weights.py`
    out_loss,  # (N) out, in the caller's order
    out_kept,  # (N) int64
    N,
    M,
    depth,
    padded,
    MODE: tl.constexpr,
    ID_MODE: tl.constexpr,
    BOUNDED: tl.constexpr,
    RULES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """One program owns BLOCK_M anchors: sums over their kept positives, then all that follows."""
    T: tl.constexpr = row_scale.dtype.element_ty
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)
    present = rows < N
    low, high = positive_range(first, last, rows, N)
    row_first, row_last = tl.load(first + rows), tl.load(last + rows)
    above, below = tl.load(bounds + rows), tl.load(bounds + padded + rows)
    pos_below = tl.load(bounds + 2 * padded + rows)
    negative = tl.load(negative_sum + rows)
    negatives = tl.load(neg_kept + rows)
    neg = negative_result(tl.load(hardest_negative + rows), negative, coefficients, BOUNDED, RULES)
    offset = tl.zeros((BLOCK_M,), T)
    if RULES == NT_XENT:
        offset = -neg
    top = tl.full((BLOCK_M,), -INFINITY, T)
    sums = tl.zeros((BLOCK_M,), T)
    moment = tl.zeros((BLOCK_M,), T)
    count = tl.zeros((BLOCK_M,), tl.int32)
    for start in range(low // BLOCK_N * BLOCK_N, high, BLOCK_N):
        columns = start + tl.arange(0, BLOCK_N)
        sim = similarity(x, row_scale, rows, r, column_scale, columns, depth, MODE, BLOCK_K)
        pair = same_class(row_first, row_last, columns)
        pair &= distinct(rows, columns, row_ids, column_ids, ID_MODE)
        keep = is_positive(sim, pair, coefficients) & (sim < pos_below[:, None])
        if RULES == CONTRASTIVE:
            sums += tl.sum(tl.where(keep, tl.maximum(tl.load(coefficients + 5) - sim, 0), 0), 1)
        elif RULES == TRIPLET:
            sums += tl.zeros((BLOCK_M,), T)  # its positives are listed already
        elif RULES == BINOMIAL or RULES == NT_XENT:
            z = tl.load(coefficients) * (tl.load(coefficients + 5) - sim) - offset[:, None]
            sums += tl.sum(tl.where(keep, softplus(z), 0), 1)
            moment += tl.sum(tl.where(keep, sigmoid(z), 0), 1)
        else:
            z = tl.where(keep, positive_exponent(sim, coefficients, RULES), -INFINITY)
            new = tl.maximum(top, tl.max(z, 1))
            reference = tl.where(new == -INFINITY, 0, new)
            sums *= tl.exp(below_peak(top, reference))
            sums += tl.sum(tl.exp(below_peak(z, reference[:, None])), 1)
            top = new
            moment += tl.sum(tl.where(keep, sim, 0), 1)
        count += tl.sum(keep.to(tl.int32), 1)
    pos = sums
    # Triton 3.2 takes no chain of three.
    PLAIN: tl.constexpr = (RULES == CONTRASTIVE or RULES == BINOMIAL) or RULES == NT_XENT
    if not PLAIN and RULES != TRIPLET:
        pos = tl.where(count > 0, top + tl.log(tl.where(sums == 0, 1, sums)), -INFINITY)

    broken = (negative == negative) == 0  # a similarity was not finite
    broken |= (tl.load(row_norm + rows) == tl.load(row_norm + rows)) == 0
    broken |= tl.load(poisoned) != 0
    broken &= M > 0
    loss, neg_factor, neg_offset, pos_factor, pos_offset, constant = finish(
        pos, neg, moment, count.to(T), negatives.to(T), coefficients, RULES
    )
    at = tl.load(order + rows, mask=present, other=0).to(tl.int64)
    tl.store(out_loss + at, tl.where(broken, float("nan"), loss), mask=present)
    kept = tl.where(broken, 0, count + negatives)
    tl.store(out_kept + at, kept.to(tl.int64), mask=present)
    muted = broken | (present == 0)
    incoming = tl.load(dloss + at, mask=present, other=0).to(T)
    # What weighs nothing does not become NaN by its incoming gradient.
    neg_factor = tl.where(muted | (neg_factor == 0), 0, neg_factor * incoming)
    pos_factor = tl.where(muted | (pos_factor == 0), 0, pos_factor * incoming)
    constant = tl.where(muted | (constant == 0), 0, constant * incoming)
    tl.store(terms + rows, tl.where(muted, INFINITY, above))
    tl.store(terms + padded + rows, tl.where(muted, -INFINITY, pos_below))
    tl.store(terms + 2 * padded + rows, tl.where(muted, 0, neg_offset))
    tl.store(terms + 3 * padded + rows, tl.where(muted, 0, pos_offset))
    tl.store(terms + 4 * padded + rows, neg_factor)
    tl.store(terms + 5 * padded + rows, below)
    tl.store(terms + 6 * padded + rows, pos_factor)
    tl.store(terms + 7 * padded + rows, constant)
