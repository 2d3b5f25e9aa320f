"""Every weighting rule with every mining rule: against loops over the equations, and the peer."""

import math
from dataclasses import dataclass

import pytest
import torch
from family import MININGS, WEIGHTINGS, expected, few, five_lines, kept, name_of

import ms_kernels
from ms_kernels import pair_loss, streamed_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.settings import options


def loop(tensors, weighting, mining):
    x, y, *refs = tensors
    r, z = refs or (x, y)
    unit = torch.nn.functional.normalize
    s = (unit(x) @ unit(r).T).tolist()
    rows = []
    for i, row in enumerate(s):
        others = [j for j in range(len(row)) if refs or j != i]
        pos = [row[j] for j in others if z[j] == y[i]]
        neg = [row[j] for j in others if z[j] != y[i]]
        rows.append(expected(weighting, *kept(mining, pos, neg)))
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("m", [None, 9], ids=["self", "refs"])
@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_values_are_those_of_the_equations(weighting, mining, m, monkeypatch):
    tensors = few(m=m)
    want = loop(tensors, weighting, mining)
    rules = {"weighting": weighting, "mining": mining}
    for backend in ("auto", "panels", "reference"):
        for panel_bytes in (1, 1 << 24):
            monkeypatch.setattr(options, "_panel_bytes", panel_bytes)
            rows = pair_loss(*tensors, **rules, reduction="none", backend=backend)
            torch.testing.assert_close(rows, want, rtol=1e-10, atol=1e-12)
    loss = pair_loss(*tensors, **rules)
    torch.testing.assert_close(loss, want.mean(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_gradcheck(weighting, mining, monkeypatch):
    if isinstance(weighting, weigh.Circle):
        pytest.skip("its weights count as constants: see test_circle_weights")
    monkeypatch.setattr(options, "_panel_bytes", 16 * 8 * 7 * 4)  # panels of 4 rows
    x, y, r, z = few(n=5, m=7, d=2)
    assert torch.autograd.gradcheck(
        lambda x, r: pair_loss(x, y, r, z, weighting=weighting, mining=mining, reduction="none"),
        (x.clone().requires_grad_(), r.clone().requires_grad_()),
        eps=1e-7,
        atol=1e-5,
    )


def test_circle_weights():
    """gamma a sigmoid(lse_p + lse_n) times the share of each log-sum-exp."""
    s = torch.tensor([[0.7, 0.2, 0.5, -0.1]], dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([[True, True, False, False]])
    rule = weigh.Circle()
    (got,) = torch.autograd.grad(rule.row_loss(s, positive, ~positive).sum(), s)
    v = s.detach()[0]
    a_p, a_n = (1.4 - v[:2]).clamp(min=0), (v[2:] + 0.4).clamp(min=0)
    p, n = -80 * a_p * (v[:2] - 0.6), 80 * a_n * (v[2:] - 0.4)
    factor = 80 * torch.sigmoid(p.logsumexp(0) + n.logsumexp(0))
    want = torch.cat([-factor * a_p * p.softmax(0), factor * a_n * n.softmax(0)])
    torch.testing.assert_close(got[0], want)


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_streamed_gradients_are_the_dense_ones(weighting, mining, monkeypatch):
    monkeypatch.setattr(options, "_panel_bytes", 16 * 8 * 40 * 7)
    x, y = few(n=40)
    found = []
    for backend in ("panels", "reference"):
        leaf = x.clone().requires_grad_()
        for reduction in ("sum", "mean_valid"):
            loss = pair_loss(
                *(leaf, y),
                weighting=weighting,
                mining=mining,
                reduction=reduction,
                backend=backend,
            )
            found.append(torch.autograd.grad(loss, leaf)[0])
    torch.testing.assert_close(found[0], found[2], rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[1], found[3], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
@pytest.mark.parametrize("labels", [[], [0], [0, 0, 0], [0, 1, 2], [0, 0, 1]], ids=str)
def test_degenerate_batches(weighting, mining, labels):
    y = torch.tensor(labels, dtype=torch.int64)
    x = torch.randn(len(y), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    want = loop((x, y), weighting, mining) if len(y) else torch.zeros(0, dtype=x.dtype)
    x.requires_grad_()
    for backend in ("auto", "reference"):
        rules = {"weighting": weighting, "mining": mining, "backend": backend}
        rows = pair_loss(x, y, **rules, reduction="none")
        torch.testing.assert_close(rows, want, rtol=1e-10, atol=1e-12)
        loss = pair_loss(x, y, **rules, reduction="mean_valid")
        assert loss.isfinite() and torch.autograd.grad(loss, x)[0].isfinite().all()


@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_a_similarity_that_is_not_finite_makes_the_loss_nan(weighting):
    x, y = few()
    x[3, 0] = math.nan
    assert pair_loss(x, y, weighting=weighting).isnan()


def test_dtypes_and_autocast():
    x, y = few()
    rules = {"weighting": weigh.NTXent()}
    want = pair_loss(x, y, **rules)
    for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 0.1), (torch.float16, 0.02)):
        loss = pair_loss(x.to(dtype), y, **rules)
        assert loss.dtype == dtype
        torch.testing.assert_close(loss.double(), want, rtol=close, atol=close)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pair_loss(x.float(), y, **rules)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
def test_your_own_loss_is_the_built_in(compiled, monkeypatch):
    monkeypatch.setattr(options, "_panel_bytes", 16 * 8 * 14 * 5)
    x, y = few()
    want_x, got_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = ms_kernels.multi_similarity_loss(want_x, y)

    def own(x):
        return streamed_loss(five_lines, x, y, mining=mine.MultiSimilarityMining(0.1))

    run = torch.compile(own, fullgraph=True, backend="aot_eager") if compiled else own
    got = run(got_x)
    torch.testing.assert_close(got, want)
    want.backward()
    got.backward()
    torch.testing.assert_close(got_x.grad, want_x.grad)


def test_a_rule_of_your_own():
    @dataclass(frozen=True)
    class Cubic(weigh.Weighting):
        scale: float = 2.0

        def row_loss(self, similarity, positive, negative):
            pushed = torch.where(negative, similarity.clamp(min=0) ** 3, 0).sum(1)
            return self.scale * pushed - torch.where(positive, similarity, 0).sum(1)

    x, y = few()
    rules = {"weighting": Cubic(3.0), "mining": mine.MultiSimilarityMining()}
    rows = pair_loss(x, y, **rules, reduction="none")
    assert torch.equal(rows > -9, torch.ones(len(x), dtype=torch.bool))
    torch.testing.assert_close(
        rows, pair_loss(x, y, **rules, reduction="none", backend="reference")
    )


@pytest.mark.parametrize("name", ["Contrastive", "NTXent", "NCA", "Circle", "Triplet", "SupCon"])
def test_modules_call_the_function(name):
    x, y = few()
    module = getattr(ms_kernels, f"{name}Loss")(mining=mine.MultiSimilarityMining())
    rule = getattr(weigh, name)()
    want = pair_loss(x, y, weighting=rule, mining=mine.MultiSimilarityMining())
    assert torch.equal(module(x, y), want)
    assert repr(rule) in repr(module) and repr(module).startswith(f"{name}Loss")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: weigh.NTXent(0.0), ValueError, "NTXent.temperature: .* above 0, got 0.0"),
        (lambda x, y: weigh.Circle(m="a"), TypeError, "Circle.m: .*'a'"),
        (lambda x, y: mine.SemiHardMining(-1), ValueError, "SemiHardMining.margin: .*got -1"),
        (lambda x, y: mine.ThresholdMining(math.nan), ValueError, "positive_below"),
        (lambda x, y: pair_loss(x, y, weighting=weigh.NCA), TypeError, r"use NCA\(\)"),
        (lambda x, y: pair_loss(x, y, weighting=weigh.NCA(), mining=1), TypeError, "mining: .*1"),
        (
            lambda x, y: pair_loss(x, y, weighting=weigh.NCA(), backend="cuda"),
            ValueError,
            "'cuda' expected tensors on cuda, got cpu; use backend='auto'",
        ),
        (lambda x, y: streamed_loss(lambda s, p, n: s, x, y), ValueError, "loss for each row"),
    ],
)
def test_errors_name_got_and_wanted(call, error, message):
    with pytest.raises(error, match=message):
        call(*few())
