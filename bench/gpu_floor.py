"""Floors and memory of the GPU bench: arithmetic that needs no GPU."""

from typing import NamedTuple

SIZES = (256, 1024, 4096, 16384, 65536)
DEPTHS = (128, 512, 1024)
# Bytes at the peak of a step for each of the N squared pairs, with float32 similarities; counted
# on the CPU: torch.compile 6.7 to 8, eager 27 to 32, pytorch-metric-learning 56 to 60.
BYTES_PER_PAIR = {
    **{"ours": 0, "cuda": 0, "triton": 0, "one_launch": 0, "tiles": 0, "panels": 0},
    **{"dense": 32, "compiled": 8, "replayed": 8, "autotuned": 8, "metric_learning": 60},
}
SMALL_SIZES = (80, 240, 480, 1024)
SMALL_DEPTHS = (512, 4096, 8448)
# Of the device's memory that a candidate may plan with: the rest is for fragments and the oracle.
USABLE = 0.8


class Rate(NamedTuple):
    """What a GPU can do: floating point operations and bytes a second."""

    bfloat16: float
    float32: float  # by three tf32 products, the precision "highest" of float32 rows
    bytes: float


# Read on such machines: 8192^3 bfloat16 products through torch, device-to-device copies. float32
# is a sixth of it: a third of tf32, which has half the rate of bfloat16.
RATES = {
    "H200": Rate(790e12, 790e12 / 6, 4.3e12),
    "H100": Rate(790e12, 790e12 / 6, 3.0e12),
}


def rate_of(
    gpu: str, flops: float | None = None, float32: float | None = None, memory: float | None = None
) -> Rate | None:
    """The rates of a GPU by its name, or those given; None if neither is known."""
    known = next((rate for name, rate in RATES.items() if name in gpu), None)
    given = (flops, float32, memory)
    if known is None:
        if flops is None or memory is None:
            return None
        known = Rate(flops, flops / 6, memory)
    elif flops is not None and float32 is None:
        given = (flops, flops / 6, memory)
    return Rate(*(k if g is None else g for k, g in zip(known, given, strict=True)))


class Floor(NamedTuple):
    """Least seconds of loss and gradient, by products and by the bytes of x and dx."""

    t1: float
    t3: float
    bytes: float


def floor_of(n: int, d: int, dtype: str, rate: Rate) -> Floor:
    """t1: each pair's similarity once, half of a product, N^2 D operations; it is the floor where
    mining keeps nothing. t3: and the gradient's product, 2 N^2 D, of all pairs. x read and dx
    written once."""
    size = {"bfloat16": 2, "float32": 4}[dtype]
    t1 = n * n * d / getattr(rate, dtype)
    return Floor(t1, 3 * t1, 2 * n * d * size / rate.bytes)


def fits(name: str, n: int, memory: int) -> bool:
    """Whether a candidate's bytes for each pair stay below the usable share of the memory."""
    return BYTES_PER_PAIR[name] * n * n <= USABLE * memory
