"""Candidates in blocks, what is joined from them, and how it is held to that of all at once."""

import functools

import torch

from ms_kernels.backends.interface import Known, Side

N = 40


def sides(dtype=torch.float64, classes=4):
    """Anchors that are among the candidates, by their ids."""
    generator = torch.Generator().manual_seed(3)
    r = torch.randn(N, 6, generator=generator, dtype=dtype)
    labels, ids = torch.arange(len(r)) % classes, torch.arange(len(r))
    return Side(r[:17], labels[:17], ids[:17]), Side(r, labels, ids)


def blocks(candidates):
    """Of uneven size."""
    half = len(candidates.labels) // 2
    for start, end in ((0, 3), (3, 4), (4, half), (half, 2 * half)):
        yield Side(*(part[start:end].clone() for part in candidates))


def hardest(module, anchors, candidates, spec):
    """From the blocks, and as mining takes them."""
    found = [module.hardest_of_block(anchors, block, spec) for block in blocks(candidates)]
    least = functools.reduce(torch.minimum, (positive for positive, _ in found))
    negatives = torch.cat([negatives for _, negatives in found], 1)
    many = spec.mining.hardest_negatives
    return Known(least, negatives.sort(1, descending=True).values[:, many - 1])


def joined(module, anchors, candidates, spec, known):
    parts = [module.block_statistics(anchors, b, spec, known) for b in blocks(candidates)]
    adds = [torch.logaddexp if log else torch.add for log in spec.weighting.log_sums]
    ways = [torch.minimum, torch.maximum, *adds, torch.add, torch.add, torch.add]
    every = zip(ways, zip(*parts, strict=True), strict=True)
    return [functools.reduce(way, numbers) for way, numbers in every]


def assert_joined(module, anchors, candidates, spec):
    want = module.row_statistics(anchors, candidates, spec)
    known = hardest(module, anchors, candidates, spec)
    got = joined(module, anchors, candidates, spec, known)
    if spec.weighting.pos_follows_neg:
        again = joined(module, anchors, candidates, spec, known._replace(neg_sum=want.neg_sum))
        got[2], got[6] = again[2], again[6]
    for name, ours, whole in zip(want._fields, got, want, strict=True):
        torch.testing.assert_close(ours, whole, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: n + m)
