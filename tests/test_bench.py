"""The benchmark measures what it says it does."""

import sys

import pytest
import rounding
import torch
from cases import MultiSimilarityOptions

pytest.importorskip("matplotlib")
pytest.importorskip("ms_kernels._cpu")

import ms_kernels  # noqa: E402
from bench.baselines import BASELINES, ours  # noqa: E402
from bench.cases import REGIMES, Batch, make_batch  # noqa: E402
from bench.check import ROUNDING, check, comparable  # noqa: E402
from bench.timing import Turns  # noqa: E402
from ms_kernels import reference  # noqa: E402


@pytest.mark.parametrize("regime", REGIMES)
def test_regimes_keep_what_they_say(regime):
    share, slack = REGIMES[regime]
    for shape in ((512, 128), (1024, 32)):
        assert share / slack < make_batch(*shape, regime).kept < share * slack


@pytest.mark.parametrize("name", ["dense", "metric_learning", "row_loop", "panels"])
def test_baselines_compute_the_same_loss(name):
    if name == "metric_learning":
        pytest.importorskip("pytorch_metric_learning")
    x, y, _ = make_batch(128, 32, "mid")
    results = []
    for function in (ours, BASELINES[name]):
        leaf = x.clone().requires_grad_()
        loss = function(leaf, y)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("regime", REGIMES)
def test_it_is_the_loss_of_pytorch_metric_learning(regime):
    """In float64, gradients along the sphere: that library lets the norm of a row in."""
    losses = pytest.importorskip("pytorch_metric_learning.losses")
    miners = pytest.importorskip("pytorch_metric_learning.miners")
    x, y, _ = make_batch(512, 32, regime)
    found = []
    for name in ("theirs", "ours"):
        leaf = x.double().requires_grad_()
        if name == "ours":
            loss = ms_kernels.MultiSimilarityLoss()(leaf, y)
        else:
            pairs = miners.MultiSimilarityMiner()(leaf, y)
            loss = losses.MultiSimilarityLoss()(leaf, y, pairs)
        (dx,) = torch.autograd.grad(loss, leaf)
        unit = torch.nn.functional.normalize(x.double(), dim=1)
        found.append((loss.detach(), dx - (dx * unit).sum(1, keepdim=True) * unit))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-9, atol=0)
    torch.testing.assert_close(
        found[1][1], found[0][1], rtol=1e-7, atol=1e-9 * float(found[0][1].abs().max())
    )


@pytest.mark.parametrize("regime", REGIMES)
def test_right_results_are_timed(regime):
    names = ("dense", "row_loop", "panels")
    check(make_batch(512, 128, regime), {"ours": ours, **{name: BASELINES[name] for name in names}})


@pytest.mark.parametrize("regime", REGIMES)
def test_the_check_allows_what_rounding_may_do(regime):
    """And hardly more: a candidate must not depend on the dense code's errors being large."""
    for shape in ((128, 128), (512, 512)):
        batch = make_batch(*shape, regime)
        x, y = batch.x.double().requires_grad_(), batch.y
        loss = reference.multi_similarity_loss(x, y)
        exact = loss.detach(), *torch.autograd.grad(loss, x)
        floors = rounding.of_spec((batch.x, y), MultiSimilarityOptions()).step("mean")
        for value, floor in zip(exact, floors, strict=True):
            assert ROUNDING / 3 <= floor.max() / value.abs().max() <= ROUNDING


@pytest.mark.parametrize(
    "what, flawed",
    [
        ("loss", lambda x, y: ours(x, y) * (1 + 1e-5)),
        ("loss", lambda x, y: ours(x, y) * float("nan")),
        ("gradient", lambda x, y: ours(x + 1e-5 * (x - x.detach()), y)),
        ("gradient", lambda x, y: ours(x.detach(), y) + 0 * x.sum()),
    ],
    ids=["loss", "nan", "gradient", "no_gradient"],
)
def test_wrong_results_are_not_timed(what, flawed):
    with pytest.raises(AssertionError, match=f"flawed: expected a {what} .*; not timed"):
        check(make_batch(512, 32, "mid"), {"flawed": flawed})


def test_a_single_mined_pair_of_each_kind_is_not_compared():
    x = torch.tensor([[0.0], [0.9], [1.3], [3.0]])
    x = torch.cat([x.cos(), x.sin()], 1)
    batch = Batch(x, torch.tensor([0, 0, 1, 2]), 0.0)
    stats = ms_kernels.row_statistics(batch.x, batch.y)
    assert int(stats.pos_kept.sum()) == int(stats.neg_kept.sum()) == 1
    assert comparable("dense", batch) and not comparable("metric_learning", batch)
    assert comparable("metric_learning", make_batch(128, 32, "mid"))


def test_candidates_take_turns():
    x, y, _ = make_batch(128, 32, "mid")
    turns = Turns(x, y, with_gradient=True)
    order = []
    turns.baselines = {
        name: lambda x, y, name=name: order.append(name) or x.sum() for name in ("a", "b")
    }
    for _ in range(2):
        turns.others()
        turns.run("ours", lambda x, y: order.append("ours") or x.sum())
    assert order == ["a", "b", "ours"] * 2
    found = turns.summary()
    assert set(found) == {"a", "b", "ours"} and found["ours"]["ratio"] == 1.0
    for kind in ("forward", "backward", "step"):
        assert found["a"][kind] > 0
    assert 0 < found["a"]["step_low"] <= found["a"]["step"] <= found["a"]["step_high"]


def test_a_peer_without_its_own_needs_is_left_out(monkeypatch, capsys):
    from bench import baselines

    monkeypatch.setitem(sys.modules, "scipy.stats", None)
    for name in [name for name in sys.modules if name.startswith("pytorch_metric_learning")]:
        monkeypatch.delitem(sys.modules, name)
    assert not baselines.has_peer.__wrapped__()
    assert "pytorch-metric-learning is left out: " in capsys.readouterr().out
