"""Rows with several labels: a pair that shares one is positive."""

import pytest
import torch

import ms_kernels
from ms_kernels import (
    MultiSimilarityLoss,
    MultiSimilarityMining,
    mined_pairs,
    multi_similarity_loss,
    pair_loss,
    pair_weights,
    row_statistics,
)
from ms_kernels.rules import weighting as rules


def batch(n=41, d=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (n,), generator=generator)


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def sets_of(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, 6, generator=generator) < 0.2


def in_dense_pytorch(similarity, positive, negative):
    """Of the NT-Xent loss of temperature 1."""
    found = []
    for i in range(len(similarity)):
        p, q = similarity[i][positive[i]], similarity[i][negative[i]]
        costs = torch.log1p((q[None] - p[:, None]).exp().sum(1))
        found.append(costs.sum() / max(1, len(p)))
    return torch.stack(found)


@pytest.mark.parametrize("backend", ["auto", "panels", "reference"])
def test_rows_with_several_labels(backend):
    """A pair that shares one is positive; a row without one is a negative of all."""
    (x, _), (r, _) = batch(20), batch(15, seed=1)
    y, z = sets_of(20), sets_of(15, seed=1)
    y[3] = False
    similarity = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(r).T
    shared = (y[:, None] & z[None]).any(2)
    want = in_dense_pytorch(similarity, shared, ~shared)
    one = {"weighting": rules.NTXent(1.0), "reduction": "none", "backend": backend}
    same(pair_loss(x, y, r, z, **one), want)
    similarity = torch.nn.functional.normalize(x) @ torch.nn.functional.normalize(x).T
    shared, others = (y[:, None] & y[None]).any(2), ~torch.eye(20, dtype=torch.bool)
    same(pair_loss(x, y, **one), in_dense_pytorch(similarity, shared & others, ~shared & others))
    mined = {"mining": MultiSimilarityMining(), "backend": backend}
    loss = pair_loss(x.requires_grad_(), y, weighting=rules.MultiSimilarity(), **mined)
    (dx,) = torch.autograd.grad(loss, x)
    assert dx.any() and dx.isfinite().all()


def test_sets_of_one_label_are_labels():
    x, y = batch()
    flags = torch.nn.functional.one_hot(y).bool()
    same(multi_similarity_loss(x, flags), multi_similarity_loss(x, y))
    for got, want in zip(mined_pairs(x, flags), mined_pairs(x, y), strict=True):
        assert torch.equal(got, want)
    found = pair_weights(MultiSimilarityLoss(), x, flags)
    same(found.weight, pair_weights(MultiSimilarityLoss(), x, y).weight)


def test_sets_where_one_label_is_expected():
    x, y = batch()
    flags = torch.nn.functional.one_hot(y).bool()
    for call, message in (
        (lambda: multi_similarity_loss(x, flags[:40]), r"labels: expected shape \(41, K\)"),
        (lambda: multi_similarity_loss(x, flags, x, y), r"ref_labels: expected shape \('M', 5\)"),
        (lambda: multi_similarity_loss(x, flags, ignore_label=1), "ignore_label: expected None"),
        (lambda: multi_similarity_loss(x, flags, backend="cpu"), "backend: expected 'auto', 'pan"),
        (lambda: row_statistics(x, flags), r"labels: expected shape \(41,\) for statistics"),
        (
            lambda: ms_kernels.CrossBatchMemory(MultiSimilarityLoss(), 7, 8)(x, flags),
            r"labels: expected shape \(41,\) in a CrossBatchMemory",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            call()
