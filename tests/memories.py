"""Small cross-batch memories, and the batches that they see."""

import torch

from ms_kernels import CrossBatchMemory, MultiSimilarityLoss

D, SIZE = 5, 20


def batches(count=6, n=7, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        x = torch.randn(n, D, generator=generator, dtype=dtype)
        yield x, torch.randint(3, (n,), generator=generator)


def memory_of(loss=None, size=SIZE, **options):
    options.setdefault("dtype", torch.float64)
    return CrossBatchMemory(loss or MultiSimilarityLoss(), D, size, **options)
