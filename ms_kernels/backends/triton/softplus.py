"""Finished log-sum-exps, joined and with a 1 added; twin of csrc/rules/softplus.h."""

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))


@triton.jit
def log1p_of_unit(t):
    """log(1 + t) for t in [0, 1], as 2 artanh(t / (2 + t)): log itself is inexact near 1."""
    TERMS: tl.constexpr = 18 if t.dtype == tl.float64 else 9
    s = t / (t + 2)
    square = s * s
    series = tl.full(t.shape, 1 / (2 * TERMS - 1), t.dtype)
    for k in tl.static_range(1, TERMS):
        series = series * square + tl.full(t.shape, 1 / (2 * (TERMS - k) - 1), t.dtype)
    return 2 * s * series


@triton.jit
def softplus(z):
    """log(1 + exp z); 0 for the empty sum, z = -inf."""
    return tl.maximum(z, 0) + log1p_of_unit(tl.exp(-tl.abs(z)))


@triton.jit
def log_add_exp(a, b):
    """log(exp a + exp b) of finite numbers."""
    return tl.maximum(a, b) + log1p_of_unit(tl.exp(-tl.abs(a - b)))


@triton.jit
def sigmoid(z):
    return 1 / (1 + tl.exp(-z))
