"""What is measured: shapes, and batches at three moments of a training."""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

import ms_kernels

SIZES = (128, 512, 2048, 4096, 8192)
DEPTHS = (128, 512)
SHAPES = ((32, 128), (240, 4096), *((n, d) for d in DEPTHS for n in SIZES))
QUICK_SHAPES = ((32, 128), (128, 128), (512, 512))
# The share of negatives that mining keeps, and how far the share of a batch may be off.
REGIMES = {"early": (0.5, 1.25), "mid": (0.05, 1.5), "late": (5e-4, 2.0)}
PER_CLASS = 8


class Batch(NamedTuple):
    x: Tensor  # (N, D) float32
    y: Tensor  # (N,)
    kept: float  # the share of negatives that mining keeps


@functools.cache
def make_batch(n: int, d: int, regime: str) -> Batch:
    """Classes of eight around random centres, so near to them that mining keeps what it should."""
    share, slack = REGIMES[regime]
    x, y = _samples(n, d, closeness(d, share))
    kept = kept_share(x, y)
    # Few pairs: a batch of 32 has 768 negatives, and one in two thousand of them is none.
    if n >= 512 and not share / slack < kept < share * slack:
        raise AssertionError(f"{regime}: expected to keep about {share} of negatives, got {kept}")
    return Batch(x, y, kept)


def kept_share(x: Tensor, y: Tensor) -> float:
    """On the CPU whatever serves its tensors: a rehearsal has slow stand-ins of GPU backends."""
    n = len(y)
    backend = "cpu" if "cpu" in ms_kernels.backends.dispatch.built() else "panels"
    kept = ms_kernels.row_statistics(x, y, backend=backend).neg_kept.sum()
    return float(kept) / (n * (n - PER_CLASS))


@functools.cache
def closeness(d: int, share: float) -> float:
    """Mean similarity of positives at which mining keeps this share of negatives: bisection."""
    low, high = 0.0, 1.0
    for _ in range(14):
        middle = (low + high) / 2
        if kept_share(*_samples(1024, d, middle)) > share:
            low = middle
        else:
            high = middle
    return (low + high) / 2


def _samples(n: int, d: int, closeness: float) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(n + d)
    y = torch.arange(n) // PER_CLASS
    centres = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)
    noise = torch.nn.functional.normalize(torch.randn(n, d, generator=generator), dim=1)
    x = closeness**0.5 * centres[y] + (1 - closeness) ** 0.5 * noise
    order = torch.randperm(n, generator=generator)  # samplers rarely sort by label
    return x[order].contiguous(), y[order].contiguous()
