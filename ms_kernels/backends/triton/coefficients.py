"""The numbers of a pair of rules on the device, by name: nobody else knows their order.

They lie on the device, so that no option is compiled in, and are written by a launch, so that a
graph can hold it.
"""

import triton
import triton.language as tl

from ms_kernels.backends.triton.rule_table import Coefficients


@triton.jit
def positive_scale(coefficients):
    return tl.load(coefficients)


@triton.jit
def positive_base(coefficients):
    return tl.load(coefficients + 1)


@triton.jit
def negative_scale(coefficients):
    return tl.load(coefficients + 2)


@triton.jit
def negative_base(coefficients):
    return tl.load(coefficients + 3)


@triton.jit
def margin(coefficients):
    """Of a circle, and of a triplet."""
    return tl.load(coefficients + 4)


@triton.jit
def max_positive_similarity(coefficients):
    return tl.load(coefficients + 5)


@triton.jit
def mining_slack(coefficients):
    return tl.load(coefficients + 6)


@triton.jit
def mining_positive_below(coefficients):
    return tl.load(coefficients + 7)


@triton.jit
def mining_negative_above(coefficients):
    return tl.load(coefficients + 8)


@triton.jit
def least_rounded(coefficients):
    """Smaller similarities are rounded as this one is: 1, of products of unit rows. Of distances 0:
    for them all kernels divide the depth alike, and small ones differ by less than a rounding of 1.
    """
    return tl.load(coefficients + 9)


# An int64 each: a small number of bits, as that of 0, would else be an int32 and another kernel.
@triton.jit(do_not_specialize=list(Coefficients._fields))
def coefficients_kernel(
    out,
    positive_scale: tl.int64,
    positive_base: tl.int64,
    negative_scale: tl.int64,
    negative_base: tl.int64,
    margin: tl.int64,
    max_positive_similarity: tl.int64,
    mining_slack: tl.int64,
    mining_positive_below: tl.int64,
    mining_negative_above: tl.int64,
    least_rounded: tl.int64,
):
    """Writes coefficients from the bits of float64 numbers: a float argument would be a float32."""
    T: tl.constexpr = out.dtype.element_ty
    tl.store(out, positive_scale.to(tl.int64).to(tl.float64, bitcast=True).to(T))
    tl.store(out + 1, positive_base.to(tl.int64).to(tl.float64, bitcast=True).to(T))
    tl.store(out + 2, negative_scale.to(tl.int64).to(tl.float64, bitcast=True).to(T))
    tl.store(out + 3, negative_base.to(tl.int64).to(tl.float64, bitcast=True).to(T))
    tl.store(out + 4, margin.to(tl.int64).to(tl.float64, bitcast=True).to(T))
    tl.store(out + 5, max_positive_similarity.to(tl.int64).to(tl.float64, bitcast=True).to(T))
    tl.store(out + 6, mining_slack.to(tl.int64).to(tl.float64, bitcast=True).to(T))
    tl.store(out + 7, mining_positive_below.to(tl.int64).to(tl.float64, bitcast=True).to(T))
    tl.store(out + 8, mining_negative_above.to(tl.int64).to(tl.float64, bitcast=True).to(T))
    tl.store(out + 9, least_rounded.to(tl.int64).to(tl.float64, bitcast=True).to(T))
