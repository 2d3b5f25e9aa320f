"""Statistics of an anchor, of every rule: what they are, and that a gradient needs no more."""

import math

import pytest
import torch
from cases import BACKENDS, EACH_BACKEND
from family import MININGS, WEIGHTINGS, name_of

import ms_kernels
from ms_kernels import pair_loss, row_statistics
from ms_kernels.backends import dispatch
from ms_kernels.backends.interface import Side, Term
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec

EACH_RULE = pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
EACH_MINING = pytest.mark.parametrize("mining", MININGS, ids=name_of)


def batch(n=23, d=5, classes=6):
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(classes, (n,), generator=generator)
    y[0] = classes  # an anchor without positives
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, y


def hardest_by_loops(x, y, mining):
    # The hardest negative of top-k mining is the last of k.
    k = mining.k if isinstance(mining, mine.TopKMining) else 1
    unit = torch.nn.functional.normalize(x)
    found = []
    for i, row in enumerate((unit @ unit.T).tolist()):
        positives = [s for j, s in enumerate(row) if y[j] == y[i] and j != i]
        negatives = [s for j, s in enumerate(row) if y[j] != y[i]]
        kth = sorted([*negatives, *[-math.inf] * k])[-k]
        found.append((min(positives, default=math.inf), kth))
    return torch.tensor(found, dtype=x.dtype).T


@EACH_RULE
@EACH_MINING
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_a_loss_follows_from_them(backend, weighting, mining):
    x, y = batch()
    rules = {"weighting": weighting, "mining": mining}
    stats = row_statistics(x, y, backend=backend, **rules)
    rows = pair_loss(x, y, reduction="none", backend="reference", **rules)
    torch.testing.assert_close(PairSpec(**rules).loss_of(stats), rows, rtol=1e-11, atol=1e-12)
    for got, want in zip(stats[:2], hardest_by_loops(x, y, mining), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-14, atol=1e-14)
    pairs = ms_kernels.mined_pairs(x, y, mining=mining)
    for got, anchors in ((stats.pos_kept, pairs[0]), (stats.neg_kept, pairs[2])):
        assert torch.equal(got, torch.bincount(anchors, minlength=len(y)))


@EACH_RULE
@EACH_MINING
def test_every_backend_gives_the_same(weighting, mining):
    x, y = batch()
    rules = {"weighting": weighting, "mining": mining}
    want = row_statistics(x, y, backend="reference", **rules)
    for backend in BACKENDS:
        got = row_statistics(x, y, backend=backend, **rules)
        for name, one, other in zip(want._fields, got, want, strict=True):
            assert one.dtype == other.dtype
            torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12, msg=name)


def gradient_by_parts(module, x, y, spec, parts):
    """Rows of one part after the other, of each against all, with everybody's statistics."""
    ids = torch.arange(len(y))
    dloss = torch.rand(len(y), dtype=x.dtype, generator=torch.Generator().manual_seed(1))
    stats = module.row_statistics(Side(x, y, ids), Side(x, y, ids), spec)
    found = []
    for rows in torch.arange(len(y)).split(parts):
        mine_ = Side(x[rows], y[rows], ids[rows])
        own = Term(type(stats)(*(s[rows] for s in stats)), dloss[rows])
        every = Term(stats, dloss)
        found.append(module.embedding_gradient(mine_, Side(x, y, ids), spec, own, every))
    return torch.cat(found), dloss


@EACH_BACKEND
@EACH_RULE
@EACH_MINING
def test_they_are_all_that_a_gradient_needs(backend, weighting, mining):
    """As for rows whose anchors lie on other machines: they see a part of those anchors' pairs."""
    if isinstance(weighting, weigh.Triplet):
        pytest.skip("compares pairs with pairs: see the next test")
    x, y = batch()
    spec = PairSpec(weighting, mining)
    got, dloss = gradient_by_parts(dispatch.MODULES[backend], x, y, spec, 9)
    leaf = x.clone().requires_grad_()
    rows = pair_loss(
        leaf, y, weighting=weighting, mining=mining, reduction="none", backend="reference"
    )
    (want,) = torch.autograd.grad(rows, leaf, dloss)
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@EACH_BACKEND
@EACH_MINING
def test_triplets_are_listed_anew(backend, mining):
    x, y = batch()
    spec, module = PairSpec(weigh.Triplet(0.2), mining), dispatch.MODULES[backend]
    ids = torch.arange(len(y))
    for columns in (None, Side(x, y, ids)):
        side = Side(x, y, ids)
        term = Term(module.row_statistics(side, columns, spec), torch.rand(len(y)).to(x.dtype))
        got = module.embedding_gradient(side, columns, spec, term, term)
        leaf = x.clone().requires_grad_()
        rows = pair_loss(
            leaf, y, weighting=spec.weighting, mining=mining, reduction="none", backend="reference"
        )
        (want,) = torch.autograd.grad(rows, leaf, term.dloss)
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_a_row_that_is_not_finite_has_none(backend):
    x, y = batch()
    x[3] = math.inf
    r = batch(n=31)
    stats = row_statistics(x, y, *r, weighting=weigh.NTXent(), backend=backend)
    for name, values in zip(stats._fields, stats, strict=True):
        if name.endswith("_kept"):
            assert values[3] == 0 and (values > 0).sum() > 20, name
        else:
            assert values.isnan().nonzero().tolist() == [[3]], name


@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
@pytest.mark.parametrize("weighting", [weigh.MultiSimilarity(), weigh.NTXent()], ids=name_of)
def test_a_row_that_is_not_finite_is_not_valid(backend, weighting):
    """Of "mean_valid": the gradients of the others are divided by the number without it."""
    x, y = batch()
    x[3] = math.inf
    r = batch(n=31)
    found = {}
    for reduction in ("sum", "mean_valid"):
        leaf = x.clone().requires_grad_()
        rules = {"weighting": weighting, "reduction": reduction, "backend": backend}
        pair_loss(leaf, y, *r, **rules).backward()
        found[reduction] = leaf.grad
    assert found["sum"][3].isnan().all()
    finite = torch.arange(len(y)) != 3
    want = found["sum"][finite] / (len(y) - 1)
    torch.testing.assert_close(found["mean_valid"][finite], want)
    stats = ms_kernels.reference.row_statistics(x, y, *r)
    assert stats.pos_kept[3] == stats.neg_kept[3] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weighting": weigh.NTXent(), "alpha": 1.0}, "expected none because weighting was given"),
        ({"mining": mine.NoMining(), "epsilon": 0.2}, "epsilon: expected none because mining"),
        ({"weighting": ms_kernels.Histogram()}, "expected rules of this package, whose losses"),
    ],
)
def test_what_does_not_fit_is_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        row_statistics(*batch(), **options)
