"""Distances in the kernels of a GPU, which compute products: Triton in its interpreter, CUDA on the
CPU, against differences in float64."""

import math

import every_backend
import pytest
import torch
from distances import DISTANCES, MININGS, RULES, batch, step
from family import KERNELS, name_of

import ms_kernels
from ms_kernels import pair_loss
from ms_kernels.backends import dispatch, products
from ms_kernels.backends.interface import Side, Term
from ms_kernels.reference import IGNORED, RowStatistics
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import NATIVE, PairSpec
from ms_kernels.settings import options

MS = weigh.MultiSimilarity(2.0, 5.0, -1.0)
# Of every batch something.
KEEPING = [rule for rule in MININGS if type(rule) is not mine.ThresholdMining]


@pytest.fixture(params=["triton", "cuda-one_launch", "cuda-small"])
def backend(monkeypatch, request):
    return every_backend.served(monkeypatch, request.param)


@pytest.fixture(params=["triton", "cuda-one_launch"])
def served_module(monkeypatch, request):
    return dispatch.MODULES[every_backend.served(monkeypatch, request.param)]


def assert_same(found, wanted, atol=1e-12):
    for got, want in zip(found, wanted, strict=True):
        scale = want.abs().max().clamp(min=1) if want.numel() else 1
        torch.testing.assert_close(got / scale, want / scale, rtol=0, atol=atol)


@pytest.mark.parametrize(("normalize", "m"), [(True, None), (False, 31)], ids=["unit", "raw"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("weighting", RULES, ids=name_of)
def test_every_rule(backend, weighting, distance, normalize, m):
    at = RULES.index(weighting)
    mining = KEEPING[at % len(KEEPING)]
    reduction = ("mean", "none", "mean_valid")[at % 3]
    rules = {"weighting": weighting, "mining": mining, "reduction": reduction}
    rules |= {"distance": distance, "normalize": normalize}
    tensors = batch(40, m, 11, classes=5)
    wanted = step(tensors, "reference", **rules)
    assert_same(step(tensors, backend, **rules), wanted, 1e-11)
    assert wanted[1].abs().max() > 1e-3


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("distance", DISTANCES)
def test_every_mining(backend, distance, mining):
    tensors = batch(40, None, 11, classes=5)
    for weighting in (MS, weigh.Triplet(0.2)):
        rules = {"weighting": weighting, "mining": mining, "distance": distance}
        rules["normalize"] = weighting is MS
        wanted = step(tensors, "reference", **rules)
        assert_same(step(tensors, backend, **rules), wanted, 1e-11)


@pytest.mark.parametrize("m", [None, 21])
@pytest.mark.parametrize("distance", DISTANCES)
def test_panel_by_panel_and_in_rounds(backend, distance, m, monkeypatch):
    monkeypatch.setattr(options, "_workspace_bytes", 0)
    tensors = batch(90, m, 70, classes=2)
    for weighting in (MS, weigh.Triplet(0.2)):
        rules = {"weighting": weighting, "distance": distance}
        wanted = step(tensors, "reference", **rules)
        assert_same(step(tensors, backend, **rules), wanted, 1e-11)


@pytest.mark.parametrize("distance", DISTANCES)
def test_gradcheck(backend, distance):
    x, y, r, z = batch(9, 7, 3, classes=3)
    leaves = x.requires_grad_(), r.requires_grad_()
    how = {"weighting": weigh.NTXent(2.0), "distance": distance, "backend": backend}
    for normalize in (True, False):
        assert torch.autograd.gradcheck(
            lambda x, r, n=normalize: pair_loss(x, y, r, z, normalize=n, **how), leaves
        )


@pytest.mark.parametrize("distance", DISTANCES)
def test_ids_and_statistics(backend, distance):
    x, y, r, z = batch(20, 25, 6, classes=3)
    ids, ref_ids = torch.arange(20), torch.arange(25) + 10
    ids[3] = ref_ids[4] = IGNORED
    how = {"weighting": MS, "mining": mine.MultiSimilarityMining(), "distance": distance}
    for given in ((x, y, r, z), (x, y)):
        own = {"ids": ids} | ({"ref_ids": ref_ids} if len(given) == 4 else {})
        found, wanted = (
            ms_kernels.row_statistics(*given, **own, **how, backend=b)
            for b in (backend, "reference")
        )
        for got, want in zip(found, wanted, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("distance", DISTANCES)
def test_near_together_and_far_from_the_origin(backend, distance):
    """Rows a hundredth apart at 1000, of which the products of rows as they are know nothing."""
    generator = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(80, 16, generator=generator) * 0.01
    tensors = x, torch.arange(80) // 4
    unit = 0.07 if distance == "euclidean" else 0.005
    for weighting in (weigh.Triplet(unit / 8), weigh.Contrastive(-unit / 2, -unit / 2)):
        rules = {"weighting": weighting, "distance": distance, "normalize": False}
        rules["reduction"] = "sum"
        loss, dx = step(tensors, backend, torch.float32, **rules)
        want, exact = step(tensors, "reference", **rules)
        assert want > 0.1 and exact.norm() > 1
        torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=0)
        assert (dx.double() - exact).norm() < 1e-3 * exact.norm()


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_row_far_from_all_the_others(backend, distance):
    x = torch.randn(30, 8, generator=torch.Generator().manual_seed(0)) * 0.01
    x[0] = 1e6
    rules = {"weighting": weigh.Contrastive(-0.02, -0.03), "reduction": "none"}
    rules |= {"distance": distance, "normalize": False}
    tensors = x, torch.arange(30) // 2
    found, wanted = (
        step(tensors, b, d, **rules)
        for b, d in ((backend, torch.float32), ("reference", torch.float64))
    )
    for got, want in zip(found, wanted, strict=True):
        assert want[2:].norm() > 1e-3
        assert (got[2:].double() - want[2:]).norm() < 1e-4 * want[2:].norm()


@pytest.mark.parametrize("spread", [1e-2, 1e-3])
@pytest.mark.parametrize("distance", DISTANCES)
def test_unit_rows_that_all_point_one_way(backend, distance, spread):
    """As those of a network that has learnt nothing yet: their products are all but 1."""
    generator = torch.Generator().manual_seed(0)
    tensors = 1 + spread * torch.randn(32, 64, generator=generator), torch.arange(32) // 4
    rules = {"weighting": weigh.NTXent(spread), "distance": distance}
    loss, dx = step(tensors, backend, torch.float32, **rules)
    want, exact = step(tensors, "reference", **rules)
    torch.testing.assert_close(loss.double(), want, rtol=1e-3, atol=0)
    assert (dx.double() - exact).norm() < 2e-3 * exact.norm()


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
@pytest.mark.parametrize("mining", [mine.HardestMining(), mine.TopKMining(2)], ids=name_of)
@pytest.mark.parametrize("distance", DISTANCES)
def test_each_half_finds_what_the_other_found(served_module, distance, mining, normalize):
    """Statistics of half of the anchors here, of half there, as processes have them: then the
    gradient of a candidate, which meets anchors of both, knows each anchor's hardest pair again."""
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(24, 7, generator=generator, dtype=torch.float64)
    x += 5 + torch.arange(24)[:, None] / 8
    y, ids, ones = torch.arange(24) % 6, torch.arange(24), torch.ones(24, dtype=torch.float64)
    rules = weigh.NTXent(0.5), mining
    spec = PairSpec(*rules, distance=distance, normalize=normalize)
    every = Side(x, y, ids)
    here, there = slice(0, 10), slice(10, 24)
    parts = [Side(x[s], y[s], ids[s]) for s in (here, there)]
    found = [served_module.row_statistics(part, every, spec) for part in parts]
    whole = RowStatistics(*map(torch.cat, zip(*found, strict=True)))
    dx = [
        served_module.embedding_gradient(
            part, every, spec, Term(own, ones[: len(part.labels)]), Term(whole, ones)
        )
        for part, own in zip(parts, found, strict=True)
    ]
    how = {"weighting": rules[0], "mining": rules[1], "reduction": "sum", "distance": distance}
    _, want = step((x, y), "reference", normalize=normalize, **how)
    assert_same([torch.cat(dx)], [want], 1e-9)


@pytest.mark.parametrize("distance", DISTANCES)
def test_small_distances_are_no_ties(backend, distance):
    x, y = batch(40, None, 11, classes=5)
    given = (1e-4 * x).float(), y
    how = {"weighting": MS, "mining": mine.HardestMining(), "distance": distance}
    stats = ms_kernels.row_statistics(*given, **how, normalize=False, backend=backend)
    assert (stats.neg_kept == 1).all() and (stats.pos_kept == 1).all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_equal_rows_pull_at_nothing(backend, distance):
    x = torch.eye(4)[torch.tensor([0, 0, 1, 1, 2, 2])]
    tensors = x, torch.tensor([0, 0, 1, 1, 2, 3])
    rules = {"weighting": weigh.Contrastive(0.0, -1.0), "distance": distance}
    loss, dx = step(tensors, backend, torch.float32, **rules)
    assert loss == pytest.approx(2 / 6)  # of the two equal rows of classes 2 and 3
    assert not dx.any()


@pytest.mark.parametrize("value", [math.inf, math.nan, 3e30])
@pytest.mark.parametrize("distance", DISTANCES)
def test_a_row_that_is_not_finite(backend, distance, value):
    """Nor one whose square is none, in float32: it spoils its own row, and all candidates."""
    x, y, r, z = (v.float() if v.is_floating_point() else v for v in batch(20, 30, 8))
    x[13, 1] = value
    rules = {"weighting": MS, "distance": distance, "normalize": False, "reduction": "none"}
    rows, dx, dr = step((x, y, r, z), backend, torch.float32, **rules)
    others = torch.arange(20) != 13
    assert rows[13].isnan() and rows[others].isfinite().all()
    assert dx[13].isnan().all() and dx[others].isfinite().all() and dr.isnan().all()
    loss, dx = step((x, y), backend, torch.float32, **rules)
    assert loss.isnan().all() and dx.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("distance", DISTANCES)
def test_half_is_computed_in_float32(backend, distance, dtype):
    """Whatever torch is told of products of float32: it is differences that are asked for."""
    tensors = batch(60, None, 20, dtype)
    rules = {"weighting": MS, "distance": distance}
    want, exact = step(tensors, "reference", **rules)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        loss, dx = step(tensors, backend, dtype, **rules)
    finally:
        torch.set_float32_matmul_precision(before)
    eps = torch.finfo(dtype).eps
    assert loss.dtype == dx.dtype == dtype
    torch.testing.assert_close(loss.double(), want, rtol=eps, atol=0)
    torch.testing.assert_close(dx.double(), exact, rtol=eps, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (1, 3), (4, 0)], ids=str)
@pytest.mark.parametrize("distance", DISTANCES)
def test_degenerate_batches(backend, distance, shape):
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tensors = x, torch.arange(shape[0]) // 2
    for normalize in (True, False):
        rules = {"weighting": MS, "distance": distance, "normalize": normalize}
        assert_same(*(step(tensors, b, **rules) for b in (backend, "reference")))


def test_a_product_of_longer_rows_is_less_half_a_squared_distance():
    x, y, r, z = batch(6, 5, 3)
    spec = PairSpec(MS, distance="euclidean", normalize=False)
    for columns in (Side(r, z, None), None):
        found = products.as_products(Side(x, y, None), columns, spec)
        rows, others = found.rows.embeddings, found.columns.embeddings
        assert rows.shape[1] % products.ALIGNED == 0
        if columns is None:
            assert found.is_apart and torch.equal(found.rows.ids, found.columns.ids)
        want = -0.5 * (x[:, None] - (x if columns is None else r)).square().sum(2)
        torch.testing.assert_close(rows @ others.T, want)


def test_products_themselves_are_left_as_they_are():
    x, y = batch(6, None, 3)
    rows = Side(x, y, None)
    found = products.as_products(rows, None, PairSpec(MS))
    assert found.rows is rows and found.columns is None
    assert found.of_rows(x) is x and found.of_columns(None) is None
    assert products.spec_of_products(PairSpec(MS)) == PairSpec(MS)


def test_every_rule_of_the_kernels_is_here():
    assert {type(rule) for rule in RULES} >= {type(rule) for rule in KERNELS}
    assert all(type(rule) in NATIVE for rule in RULES)
