"""The streaming backend against the dense reference."""

import math

import pytest
import torch

from ms_kernels import MultiSimilaritySpec
from ms_kernels.backends import panels
from ms_kernels.backends.panels import Side, Term
from ms_kernels.reference import multi_similarity_loss, row_statistics

SPECS = [
    MultiSimilaritySpec(),
    MultiSimilaritySpec(epsilon=None),
    MultiSimilaritySpec(alpha=1.0, beta=40.0, base=0.0, max_positive_similarity=0.9),
    MultiSimilaritySpec(beta=5.0, normalize=False),
]


def batch(n, d, classes=4, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(classes, (n,), generator=generator)


@pytest.fixture(autouse=True)
def narrow_panels(monkeypatch):
    monkeypatch.setattr(panels, "PANEL_BYTES", 7 * 23 * 8)  # several panels, the last one ragged


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("classes", [1, 4, 100])
def test_batch_equals_reference(spec, classes):
    x, y = batch(23, 9, classes)
    side = Side(x, y, None)
    stats = panels.row_statistics(side, None, spec)
    for got, want in zip(stats, row_statistics(x, y, **vars(spec)), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)

    leaf = x.clone().requires_grad_()
    d = torch.linspace(-1, 2, len(x), dtype=x.dtype)
    (multi_similarity_loss(leaf, y, reduction="none", **vars(spec)) * d).sum().backward()
    term = Term(stats, d)
    got = panels.embedding_gradient(side, None, spec, term, term)
    torch.testing.assert_close(got, leaf.grad, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("spec", SPECS, ids=str)
@pytest.mark.parametrize("with_ids", [False, True])
def test_refs_equal_reference(spec, with_ids):
    (x, y), (r, z) = batch(23, 9), batch(31, 9, seed=1)
    ids = torch.arange(23) if with_ids else None
    ref_ids = torch.arange(31) - 5 if with_ids else None
    rows, columns = Side(x, y, ids), Side(r, z, ref_ids)
    x1, r1 = x.clone().requires_grad_(), r.clone().requires_grad_()
    d = torch.linspace(-1, 2, len(x), dtype=x.dtype)
    options = dict(ids=ids, ref_ids=ref_ids, reduction="none", **vars(spec))
    (multi_similarity_loss(x1, y, r1, z, **options) * d).sum().backward()
    term = Term(panels.row_statistics(rows, columns, spec), d)
    dx = panels.embedding_gradient(rows, columns, spec, term, None)
    dr = panels.embedding_gradient(columns, rows, spec, None, term)
    torch.testing.assert_close(dx, x1.grad, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(dr, r1.grad, rtol=1e-10, atol=1e-12)


def test_non_finite_rows_reach_loss_and_gradient():
    x, y = batch(23, 9)
    x[4, 2] = math.nan
    side, spec = Side(x, y, None), MultiSimilaritySpec()
    stats = panels.row_statistics(side, None, spec)
    assert stats.neg_lse.isnan().all()
    term = Term(stats, torch.ones(23, dtype=x.dtype))
    assert panels.embedding_gradient(side, None, spec, term, term).isnan().all()


def test_empty_batch():
    x, y = batch(0, 9)
    side, spec = Side(x, y, None), MultiSimilaritySpec()
    stats = panels.row_statistics(side, None, spec)
    assert [len(s) for s in stats] == [0] * 6
    term = Term(stats, torch.ones(0, dtype=x.dtype))
    assert panels.embedding_gradient(side, None, spec, term, term).shape == (0, 9)
