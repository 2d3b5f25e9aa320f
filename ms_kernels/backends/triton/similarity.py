"""One tile of similarities, in one way for every kernel: S_ij and S_ji carry the same bits.

Operands are padded copies (`rows.py`): whole blocks are read without masks. A pair's similarity is
the product of the copies times the product of the two rows' scales, accumulated in ascending depth.
What is added first of longer rows is the sum of two numbers: exchanged they have the same.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.softplus import INFINITY


@triton.jit
def round_to_tf32(x):
    """Nearest float32 with 10 bits of mantissa."""
    bits = x.to(tl.int32, bitcast=True) + 0x1000
    return (bits & ~0x1FFF).to(tl.float32, bitcast=True)


@triton.jit
def apart(product):
    """A product of matrices whose sums are not those of what it is added to: times a 1 that the
    compiler does not know. A tensor core cuts each of its sums to float32 instead of rounding it,
    and a long chain of such drifts: so stages are added up in float32, outside of it."""
    return product * (tl.num_programs(0) > 0).to(product.dtype)


@triton.jit
def multiply_add(a, b, sums, MODE: tl.constexpr):
    """sums + a @ b, with products as accurate as MODE (`tiles.py`) says."""
    if MODE == "half_in_float32":
        a, b = a.to(tl.float32), b.to(tl.float32)
    if MODE == "tf32x3":
        zero = tl.zeros(sums.shape, sums.dtype)
        return sums + apart(tl.dot(a, b, zero, input_precision="tf32x3", out_dtype=sums.dtype))
    if MODE == "tf32":
        return tl.dot(a, b, sums, input_precision="tf32", out_dtype=sums.dtype)
    return tl.dot(a, b, sums, input_precision="ieee", out_dtype=sums.dtype)


@triton.jit
def split_product(a, b):
    """a @ b, each operand as a tf32 number and what is left of it.

    The two mixed products have a sum each: exchanging a and b exchanges them, not their total.
    """
    zero = tl.zeros((a.shape[0], b.shape[1]), a.dtype)
    a_high, b_high = round_to_tf32(a), round_to_tf32(b)
    a_low, b_low = round_to_tf32(a - a_high), round_to_tf32(b - b_high)
    high = tl.dot(a_high, b_high, zero, input_precision="tf32")
    low_high = tl.dot(a_low, b_high, zero, input_precision="tf32")
    high_low = tl.dot(a_high, b_low, zero, input_precision="tf32")
    return apart(high) + (apart(low_high) + apart(high_low))


@triton.jit
def distance_similarity(product, DISTANCE: tl.constexpr):
    """The similarity of longer rows, whose product is less half a squared distance: see
    `products.py`. A product above 0 is rounding; one that is not a number stays so."""
    if DISTANCE != "none":
        product = 2 * tl.where(product > 0, 0, product)
        if DISTANCE == "euclidean":
            product = -tl.sqrt(-product)
        else:
            tl.static_assert(
                DISTANCE == "squared_euclidean", "distance_similarity: unknown distance"
            )
    return product


@triton.jit
def through_distance(weight, sim, DISTANCE: tl.constexpr):
    """What a weight on a similarity is on the product of its rows; on distance 0 nothing."""
    if DISTANCE == "euclidean":
        weight /= tl.where(sim < 0, -sim, INFINITY)
    elif DISTANCE == "squared_euclidean":
        weight *= 2
    return weight


@triton.jit
def similarity_of(own, other, row_scale, column_scale, MODE: tl.constexpr):
    """Of rows `own` (BLOCK_M, depth) and columns `other` (depth, BLOCK_N), held whole."""
    if MODE == "tf32x3":
        sums = split_product(own, other)
    else:
        zero = tl.zeros((own.shape[0], other.shape[1]), row_scale.dtype)
        sums = multiply_add(own, other, zero, MODE)
    return sums * (row_scale[:, None] * column_scale[None, :])


@triton.jit
def similarity(
    x,
    row_scale,
    rows,  # (BLOCK_M)
    r,
    column_scale,
    columns,  # (BLOCK_N)
    depth,  # a multiple of BLOCK_K, and the stride of both copies
    MODE: tl.constexpr,
    DISTANCE: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """(BLOCK_M, BLOCK_N) similarities of rows and columns, in pieces of BLOCK_K."""
    k = tl.arange(0, BLOCK_K)
    a_at = x + rows.to(tl.int64)[:, None] * depth + k[None, :]
    b_at = r + columns.to(tl.int64)[None, :] * depth + k[:, None]
    row_factor, column_factor = tl.load(row_scale + rows), tl.load(column_scale + columns)
    sums = tl.zeros((rows.shape[0], columns.shape[0]), row_factor.dtype)
    for first in range(0, depth, BLOCK_K):
        a, b = tl.load(a_at + first), tl.load(b_at + first)
        if MODE == "tf32x3":
            sums += split_product(a, b)
        else:
            sums = multiply_add(a, b, sums, MODE)
    return distance_similarity(sums * (row_factor[:, None] * column_factor[None, :]), DISTANCE)
