"""Which rows count and how much: ignored labels and ids, anchors, weights, statistics of a pass."""

import pytest
import torch
from every_backend import NAMES, served
from torch.autograd import gradcheck

import ms_kernels
from ms_kernels import (
    IGNORED,
    MultiSimilarityLoss,
    MultiSimilarityMining,
    NoMining,
    TopKMining,
    mined_pairs,
    multi_similarity_loss,
    pair_loss,
    pair_weights,
    row_statistics,
)
from ms_kernels.backends import dispatch
from ms_kernels.rules import weighting as rules

LOSSES = {
    "ms": (rules.MultiSimilarity(), MultiSimilarityMining()),
    "ms_unmined": (rules.MultiSimilarity(2.0, 5.0, 0.3), NoMining()),
    "nt_xent": (rules.NTXent(0.2), NoMining()),
    "contrastive": (rules.Contrastive(), NoMining()),
    "triplet": (rules.Triplet(0.3), NoMining()),
    "sup_con_top_k": (rules.SupCon(0.2), TopKMining(3)),
}


def batch(n=41, d=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (n,), generator=generator)


def losses_and_gradients(sides, name, backend, **options):
    weighting, mining = LOSSES[name]
    leaves = [side.detach().clone().requires_grad_() for side in sides[::2]]
    given = [t for pair in zip(leaves, sides[1::2], strict=True) for t in pair]
    loss = pair_loss(*given, weighting=weighting, mining=mining, backend=backend, **options)
    loss.sum().backward()
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", [*NAMES, "cuda-small"])
def test_an_ignored_sample_is_in_no_pair(monkeypatch, backend, name):
    """As if it were not there, on either side; it costs 0 and has no gradient."""
    backend = served(monkeypatch, backend)
    x, y = batch()
    ids = torch.arange(41).masked_fill(torch.arange(41) % 3 == 1, IGNORED)
    there = ids != IGNORED
    want = losses_and_gradients((x[there], y[there]), name, "reference", reduction="none")
    got = losses_and_gradients((x, y), name, backend, reduction="none", ids=ids)
    for g, w in zip(got, want, strict=True):
        same(g[there], w)
        assert not g[~there].any()

    r, z = batch(29, seed=1)
    ref_ids = torch.arange(29).masked_fill(torch.arange(29) % 4 == 0, IGNORED)
    here = ref_ids != IGNORED
    sides = x[there], y[there], r[here], z[here]
    own = {"ids": ids[there], "ref_ids": ref_ids[here]}
    want = losses_and_gradients(sides, name, "reference", **own, reduction="sum")
    own = {"ids": ids, "ref_ids": ref_ids}
    total, dx, dr = losses_and_gradients((x, y, r, z), name, backend, **own, reduction="sum")
    same(total, want[0])
    same(dx[there], want[1])
    same(dr[here], want[2])
    assert not dx[~there].any() and not dr[~here].any()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
@pytest.mark.parametrize("backend", ["reference", "panels", "cpu"])
def test_rows_of_an_ignored_label_are_not_looked_at(monkeypatch, backend, reduction):
    backend = served(monkeypatch, backend)
    x, y = batch()
    y[::4] = -1
    there = y != -1
    want = losses_and_gradients((x[there], y[there]), "ms", "reference", reduction=reduction)
    x[0] = torch.nan
    got = losses_and_gradients((x, y), "ms", backend, reduction=reduction, ignore_label=-1)
    if reduction == "none":
        assert not got[0][~there].any()
        got[0] = got[0][there]
    same(got[0], want[0])
    same(got[1][there], want[1])
    assert not got[1][~there].any()


def test_refs_of_an_ignored_label():
    x, y = batch()
    r, z = batch(29, seed=1)
    y[::4], z[::3] = -1, -1
    want = multi_similarity_loss(x[y != -1], y[y != -1], r[z != -1], z[z != -1])
    same(multi_similarity_loss(x, y, r, z, ignore_label=-1), want)
    one = {"ignore_label": -1, "backend": "reference"}
    same(multi_similarity_loss(x, y, r, z, **one), want)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", [*NAMES, "cuda-small"])
def test_weights_of_anchors(monkeypatch, backend, name, reduction):
    """Of losses (N,), whose sum is divided by the sum of the weights that are counted."""
    backend = served(monkeypatch, backend)
    x, y = batch(23)
    y[3] = 77  # without a positive
    mask, weight = torch.arange(23) % 5 > 0, torch.linspace(0, 3, 23, dtype=torch.float64)
    weighting, mining = LOSSES[name]
    leaf = x.clone().requires_grad_()
    rows = pair_loss(
        leaf, y, weighting=weighting, mining=mining, backend="reference", reduction="none"
    )
    stats = row_statistics(x, y, weighting=weighting, mining=mining, backend="reference")
    each = weight * mask
    want = {
        "none": rows * each,
        "sum": (rows * each).sum(),
        "mean": (rows * each).sum() / each.sum(),
        "mean_valid": (rows * each).sum() / (each * stats.active).sum(),
    }[reduction]
    want.sum().backward()
    options = {"anchor_mask": mask, "sample_weight": weight, "reduction": reduction}
    got = losses_and_gradients((x, y), name, backend, **options)
    same(got[0], want.detach())
    same(got[1], leaf.grad)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
@pytest.mark.parametrize("backend", ["reference", "panels", "cpu"])
def test_weights_may_learn(monkeypatch, backend, reduction):
    backend = served(monkeypatch, backend)
    x, y = batch(11, 3)
    y[2] = 9
    r, z = batch(6, 3, seed=2)
    weight = torch.linspace(0.5, 2, 11, dtype=torch.float64)
    options = {"beta": 5.0, "epsilon": None, "reduction": reduction, "backend": backend}
    leaves = [side.requires_grad_() for side in (x, weight, r)]

    def loss(x, weight, r):
        return multi_similarity_loss(x, y, r, z, sample_weight=weight, **options)

    assert gradcheck(loss, leaves, atol=1e-6)


@pytest.mark.parametrize("weights", [[0, 1, 2, 0, 1, 1, 1, 1], [1, -1, 0, 0, 0, 0, 0, 0]], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_valid"])
def test_a_weight_of_nothing_learns(weights, reduction):
    x, _ = batch(8)
    y = torch.arange(8) // 2
    found = []
    for backend in ("cpu", "reference", "panels"):
        weight = torch.tensor(weights, dtype=torch.float64, requires_grad=True)
        options = {"sample_weight": weight, "reduction": reduction, "backend": backend}
        (dw,) = torch.autograd.grad(multi_similarity_loss(x, y, **options), weight)
        found.append(dw)
    rows = multi_similarity_loss(x, y, reduction="none")
    if reduction == "sum":
        same(found[0], rows)
    same(found[1], found[0])
    same(found[2], found[0])


def test_no_anchor_at_all():
    x, y = batch()
    x.requires_grad_()
    for nothing in (
        {"anchor_mask": torch.zeros(41, dtype=torch.bool)},
        {"sample_weight": torch.zeros(41)},
        {"ignore_label": 3, "anchor_mask": y == 3},
    ):
        for reduction in ("mean", "mean_valid", "sum"):
            loss = multi_similarity_loss(x, y, reduction=reduction, **nothing)
            (dx,) = torch.autograd.grad(loss, x)
            assert loss == 0 and not dx.any()


def test_own_rules_and_half_rows():
    class Own(rules.Weighting):
        def row_loss(self, similarity, positive, negative):
            return (similarity * negative).sum(1) - (similarity * positive).sum(1)

    x, y = batch()
    weight = torch.linspace(0, 2, 41, dtype=torch.float64)
    each = pair_loss(x, y, weighting=Own(), reduction="none")
    got = pair_loss(x, y, weighting=Own(), sample_weight=weight)
    same(got, (each * weight).sum() / weight.sum())
    half = multi_similarity_loss(x.half(), y, sample_weight=weight)
    assert half.dtype == torch.float16
    want = multi_similarity_loss(x.half().double(), y, sample_weight=weight)
    torch.testing.assert_close(half.double(), want, rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("backend", [*NAMES, "cuda-small"])
def test_statistics_of_the_pass(monkeypatch, backend, name):
    backend = served(monkeypatch, backend)
    x, y = batch()
    weighting, mining = LOSSES[name]
    rule = {"weighting": weighting, "mining": mining}
    want = row_statistics(x, y, **rule, backend="reference")
    x.requires_grad_()
    loss, got = pair_loss(x, y, **rule, return_statistics=True, backend=backend)
    assert not any(s.requires_grad for s in got)
    for g, w in zip(got, want, strict=True):
        same(g, w)
    (dx,) = torch.autograd.grad(loss, x)
    plain = losses_and_gradients((x, y), name, backend)
    same(loss.detach(), plain[0])
    same(dx, plain[1])


@pytest.mark.parametrize("backend", ["cpu", "cuda-one_launch", "cuda-small", "cuda-by_tiles"])
def test_statistics_cost_no_sweep_more(monkeypatch, backend):
    backend, seen = served(monkeypatch, backend), []
    module = dispatch.MODULES[backend]
    for job in ("row_statistics", "embedding_gradient", "loss_and_gradient", "counted_loss"):
        real = getattr(module, job)
        monkeypatch.setattr(module, job, lambda *a, r=real, j=job: seen.append(j) or r(*a))
    x, y = batch()
    loss, _ = multi_similarity_loss(
        x.requires_grad_(), y, return_statistics=True, backend=backend, sample_weight=torch.ones(41)
    )
    loss.backward()
    assert seen == ["counted_loss"]


def test_a_module_keeps_the_statistics_of_its_last_call():
    x, y = batch()
    loss = MultiSimilarityLoss(keep_statistics=True)
    with pytest.raises(RuntimeError, match=r"statistics: expected keep_statistics=True and a call"):
        _ = loss.statistics
    loss(x.requires_grad_(), y).backward()
    want = row_statistics(x, y)
    assert torch.equal(loss.statistics.active, want.pos_kept + want.neg_kept > 0)
    with pytest.raises(RuntimeError, match="got keep_statistics=False"):
        _ = MultiSimilarityLoss().statistics
    with pytest.raises(ValueError, match="keep_statistics: expected rules of this package"):
        ms_kernels.HistogramLoss(keep_statistics=True)


def test_listed_pairs_and_weights_follow():
    x, y = batch()
    mask = torch.arange(41) % 2 == 0
    a, p, _, n = mined_pairs(x, y, ignore_label=3, anchor_mask=mask)
    assert len(a) and mask[a].all()
    assert (y[torch.cat([a, p, n])] != 3).all()
    found = pair_weights(MultiSimilarityLoss(ignore_label=3, epsilon=None), x, y)
    assert not found.weight[y == 3].any() and not found.weight[:, y == 3].any()
    assert found.weight[y != 3].any()


def test_compiled_with_weights_and_statistics():
    x, y = batch()
    mask = torch.arange(41) % 5 > 0

    def step(x, weight):
        return multi_similarity_loss(
            x,
            y,
            ignore_label=2,
            anchor_mask=mask,
            sample_weight=weight,
            return_statistics=True,
        )

    weight = torch.linspace(0, 3, 41)
    leaves = [x.clone().requires_grad_() for _ in range(2)]
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    for run, leaf in zip((compiled, step), leaves, strict=True):
        loss, stats = run(leaf, weight)
        loss.backward()
    assert torch.equal(leaves[0].grad, leaves[1].grad)
    assert torch.equal(stats.active, compiled(x, weight)[1].active)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ignore_label": 1.5}, "ignore_label: expected an integer of 64 bits or None, got 1.5"),
        ({"ignore_label": True}, "ignore_label: expected an integer of 64 bits or None, got True"),
        ({"ignore_label": 2**63}, "ignore_label: expected an integer of 64 bits"),
        ({"anchor_mask": [True]}, "anchor_mask: expected a tensor, got list"),
        ({"anchor_mask": torch.ones(41)}, "anchor_mask: expected bool, got torch.float32"),
        ({"anchor_mask": torch.ones(40).bool()}, r"anchor_mask: expected shape \(41,\)"),
        ({"sample_weight": torch.ones(41).bool()}, "sample_weight: expected a floating-point or"),
        ({"sample_weight": torch.ones(41, 1)}, r"sample_weight: expected shape \(41,\)"),
        ({"sample_weight": torch.ones(41, device="meta")}, "sample_weight: expected device cpu"),
        ({"return_statistics": 1}, "return_statistics: expected True or False, got 1"),
    ],
    ids=str,
)
def test_errors(options, message):
    x, y = batch()
    with pytest.raises((TypeError, ValueError), match=message):
        multi_similarity_loss(x, y, **options)


def test_a_loss_of_the_batch_has_no_anchors():
    x, y = batch()
    histogram = ms_kernels.HistogramLoss(ignore_label=3)
    same(histogram(x, y), ms_kernels.HistogramLoss()(x[y != 3], y[y != 3]))
    with pytest.raises(ValueError, match="anchor_mask, sample_weight: expected None with Hist"):
        histogram(x, y, sample_weight=torch.ones(41))
