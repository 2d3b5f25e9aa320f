"""The family's fused kernels against the dense reference: several tiles, every pair of rules."""

import functools
import math

import pytest
import torch
from family import KERNELS, MININGS, assert_step, batch, name_of, step
from rounding import Rounding

import ms_kernels
from ms_kernels import pair_loss
from ms_kernels.api import road
from ms_kernels.backends import cpu, dispatch
from ms_kernels.backends.interface import Crowd, Side
from ms_kernels.engine.autograd import fused_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec
from ms_kernels.settings import options

# Tiles of 48 and of 96 and their edges, candidates apart.
SHAPES = [(130, None, 16), (300, None, 33), (60, 310, 17)]
pytestmark = pytest.mark.skipif(
    not ms_kernels.backends()["cpu"].available, reason="the compiled module is not here"
)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_values_and_gradients(weighting, mining, shape):
    sides = batch(*shape)
    rules = {"weighting": weighting, "mining": mining}
    for reduction in ("none", "mean_valid"):
        want = step(sides, "reference", reduction, **rules)
        for got, exact in zip(step(sides, "cpu", reduction, **rules), want, strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_errors_stay_within_the_budget(weighting, dtype):
    for shape in ((130, None, 16), (60, 310, 17)):
        sides = [side.to(dtype) if side.is_floating_point() else side for side in batch(*shape)]
        assert_step(sides, "cpu", weighting=weighting)


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_gradcheck(weighting, mining):
    if isinstance(weighting, weigh.Circle):
        pytest.skip("its weights count as constants: values and gradients are compared above")
    x, y, r, z = batch(5, 7, 2)
    assert torch.autograd.gradcheck(
        lambda x, r: pair_loss(
            x, y, r, z, weighting=weighting, mining=mining, reduction="none", backend="cpu"
        ),
        (x.requires_grad_(), r.requires_grad_()),
        eps=1e-7,
        atol=1e-5,
    )


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_ids_caps_and_raw_rows(weighting, mining):
    x, y = batch(90, None, 6)
    ids = torch.arange(90) // 2  # two views of each sample
    shared = {"ids": ids, "max_positive_similarity": 0.8, "normalize": False}
    x = x / x.norm(dim=1, keepdim=True) * torch.linspace(0.5, 1.2, 90, dtype=x.dtype)[:, None]
    rules = {"weighting": weighting, "mining": mining, **shared}
    want = step((x, y), "reference", **rules)
    for got, exact in zip(step((x, y), "cpu", **rules), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "mining", [mine.NoMining(), mine.HardestMining(), mine.SemiHardMining()], ids=name_of
)
@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_bits_depend_on_no_thread_and_no_budget(weighting, mining, monkeypatch):
    sides = batch(400, None, 20, torch.float32)
    rules = {"weighting": weighting, "mining": mining}
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        want = step(sides, "cpu", "mean", **rules)
        for threads, budget in ((2, 40 << 20), (3, 0), (1, 1 << 16)):
            torch.set_num_threads(threads)
            monkeypatch.setattr(options, "_workspace_bytes", budget)
            for got, same in zip(step(sides, "cpu", "mean", **rules), want, strict=True):
                assert torch.equal(got, same)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("place", [0, 63, 200])
@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_a_row_that_is_not_finite(weighting, place):
    x, y, r, z = batch(300, 310, 8)
    x[place, 1] = math.inf
    rows, dx, dr = step((x, y, r, z), "cpu", weighting=weighting)
    others = torch.arange(300) != place
    assert rows[place].isnan() and rows[others].isfinite().all()
    assert dx[place].isnan().all() and dx[others].isfinite().all() and dr.isnan().all()


@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_exponents_far_apart(scale):
    """Temperatures at which one reference for all pairs of a tile would overflow or vanish."""
    sides = batch(130, None, 6)
    for weighting in (
        weigh.NTXent(0.05 * scale),
        weigh.SupCon(0.05 * scale),
        weigh.NCA(0.05 * scale),
        weigh.BinomialDeviance(2 / scale, 50 / scale),
        weigh.BinLifted(2 / scale, 50 / scale),
        weigh.Circle(0.25, 80 / max(1, scale)),
    ):
        for dtype in (torch.float64, torch.float32):
            assert_step((sides[0].to(dtype), sides[1]), "cpu", weighting=weighting)


def test_all_rows_alike():
    x, y = torch.ones(100, 3, dtype=torch.float64), torch.arange(100) // 5
    for weighting in KERNELS:
        for mining in MININGS:
            rules = {"weighting": weighting, "mining": mining}
            got, want = step((x, y), "cpu", **rules), step((x, y), "reference", **rules)
            torch.testing.assert_close(got[0], want[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("backend", ["cpu", "panels", "reference"])
@pytest.mark.parametrize("margin", [0.0, 1.0])
@pytest.mark.parametrize("per_class", [4, 9, 10, 20])
def test_triplets_on_their_margin_count(per_class, margin, backend):
    """However many positives there are, and wherever they lie among the columns."""
    order = torch.randperm(40, generator=torch.Generator().manual_seed(per_class))
    x = torch.eye(4, dtype=torch.float64)[torch.arange(40) % 4][order]
    y = (torch.arange(40) // per_class)[order]
    sim, same = x @ x.T, y[:, None] == y
    other = same & ~torch.eye(40, dtype=torch.bool)
    # [i, p, n]: a triplet that counts.
    violated = other[:, :, None] & ~same[:, None] & (sim[:, None] - sim[:, :, None] + margin >= 0)
    weight = (violated.sum(1) - violated.sum(2)).to(sim)
    rules = {"weighting": weigh.Triplet(margin), "normalize": False, "reduction": "sum"}
    _, dx = step((x, y), backend, **rules)
    torch.testing.assert_close(dx, (weight + weight.T) @ x)


def test_what_the_kernels_do_not_know():
    x, y = batch(20, None, 3)
    weighting = weigh.Circle(0.9, 256.0)
    assert "cpu" not in dispatch.takers(PairSpec(weighting, mine.NoMining()))
    with pytest.raises(ValueError, match="'cpu' expected a rule that its kernels know"):
        pair_loss(x, y, weighting=weighting, backend="cpu")
    torch.testing.assert_close(
        pair_loss(x, y, weighting=weighting),
        pair_loss(x, y, weighting=weighting, backend="reference"),
    )


@pytest.mark.parametrize("margin", [-0.2, 0.0, 0.1, 1.5])
@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize(
    ("n", "m", "classes"), [(300, None, 2), (70, 330, 3), (330, 70, 3), (230, None, 40)]
)
def test_triplets_of_long_lists(n, m, classes, mining, margin, monkeypatch):
    """Classes of more candidates than an anchor lists at once, 64 of rows so short; and tiles with
    many violations, with few, with none."""
    new = {"generator": torch.Generator().manual_seed(n)}
    sides = []
    for count in (n,) if m is None else (n, m):
        sides += [torch.randn(count, 5, dtype=torch.float64, **new)]
        sides += [torch.randint(classes, (count,), **new)]
    rules = {"weighting": weigh.Triplet(margin), "mining": mining}
    for reduction in ("none", "mean_valid"):
        want = step(sides, "reference", reduction, **rules)
        got = step(sides, "cpu", reduction, **rules)
        for mine_, exact in zip(got, want, strict=True):
            torch.testing.assert_close(mine_, exact, rtol=1e-11, atol=1e-11)
        monkeypatch.setattr(options, "_workspace_bytes", 0)
        before = torch.get_num_threads()
        torch.set_num_threads(3)
        try:
            for mine_, same in zip(step(sides, "cpu", reduction, **rules), got, strict=True):
                assert torch.equal(mine_, same)
        finally:
            torch.set_num_threads(before)


@pytest.mark.parametrize("classes", [1, 2])
def test_rows_that_overflow_stay_alone_in_every_round(classes):
    """Of the losses: what one round finds not finite is no news for the anchors of the next."""
    x = torch.randn(150, 4)
    x[:2] *= 1e25
    y = torch.arange(150) % classes
    spec = PairSpec(weigh.Triplet(), mine.NoMining(), normalize=False)
    for need_dx in (False, True):
        side = Side(x, y, None)
        loss, kept, *_ = cpu.loss_and_gradient(side, None, spec, need_dx, False)
        assert loss.isnan().sum() == 2 and (kept > 0).sum() == 148


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_triplets_of_long_lists_stay_within_the_budget(dtype):
    x = torch.randn(320, 16, generator=torch.Generator().manual_seed(3)).to(dtype)
    y = torch.arange(320) % 2
    weighting = weigh.Triplet(0.3)
    # Without anchors of which rounding may turn one of a million triplets around.
    settled = ~Rounding((x, y), weighting, mine.NoMining()).flips.any(1)
    assert settled.sum() > 280
    assert_step((x[settled], y[settled]), "cpu", weighting=weighting)


def test_triplets_that_tie_with_the_margin():
    """A triplet on its margin costs 0 and pulls, as in the reference."""
    x = torch.tensor([[1.0, 0.0], [0.5, 1.0], [0.25, 1.0], [0.5, 3.0], [0.0, 1.0]])
    y = torch.tensor([0, 0, 1, 1, 1])
    rules = {"weighting": weigh.Triplet(0.25), "normalize": False}
    got, want = (step((x, y), backend, **rules) for backend in ("cpu", "reference"))
    assert all(map(torch.equal, got, want))


def test_triplets_of_a_crowd_are_sorted(monkeypatch):
    seen = []
    monkeypatch.setattr(cpu, "CROWD", Crowd(5, of_class=True))
    monkeypatch.setattr(
        road, "fused_loss", lambda *args: seen.append(args[-1]) or fused_loss(*args)
    )
    x, crowd, few = torch.randn(12, 3), torch.arange(12) // 6, torch.arange(12) // 4
    for labels in (crowd, few):
        pair_loss(x, labels, weighting=weigh.Triplet())
        pair_loss(x, labels, weighting=weigh.Triplet(), backend="cpu")
    # Candidates of a class that no anchor has are only negatives.
    pair_loss(x, few, torch.randn(30, 3), torch.full((30,), -1), weighting=weigh.Triplet())
    assert seen == ["panels", "cpu", "auto", "cpu", "auto"]
    with pytest.raises(RuntimeError, match="use backend='reference'"):
        torch.vmap(lambda x, y: pair_loss(x, y, weighting=weigh.Triplet()))(x[None], crowd[None])


def test_triplets_in_a_transform():
    x, y = batch(30, None, 4)
    run = functools.partial(pair_loss, weighting=weigh.Triplet(), backend="reference")
    got = torch.vmap(run)(torch.stack([x, x * 2 - 0.1]), torch.stack([y, y.flip(0)]))
    torch.testing.assert_close(got, torch.stack([run(x, y), run(x * 2 - 0.1, y.flip(0))]))


def test_options_that_float32_does_not_hold():
    x, y = batch(20, None, 3)
    with pytest.raises(ValueError, match="options must be 0 or between 1e-30 and 1e\\+30"):
        pair_loss(x, y, weighting=weigh.Triplet(1e-31), backend="cpu")
    torch.testing.assert_close(
        pair_loss(x, y, weighting=weigh.Triplet(1e-31)), pair_loss(x, y, weighting=weigh.Triplet(0))
    )


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["NTXent", "Triplet"])
def test_compiled_whole(name, reduction):
    x, y = batch(60, None, 8)
    rules = {"weighting": getattr(weigh, name)(), "reduction": reduction}
    want_x, got_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    want = pair_loss(want_x, y, **rules)
    run = torch.compile(
        lambda x: pair_loss(x, y, **rules).sum(), fullgraph=True, backend="aot_eager"
    )
    got = run(got_x)
    torch.testing.assert_close(got, want.sum())
    want.sum().backward()
    got.backward()
    torch.testing.assert_close(got_x.grad, want_x.grad)


def test_no_second_derivative_in_silence():
    x, y = batch(20, None, 3)
    x.requires_grad_()
    loss = pair_loss(x, y, weighting=weigh.NCA(), reduction="none").sum()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(loss, x, create_graph=True)


def test_a_compiled_crowd_is_streamed(monkeypatch):
    """As on a GPU with many candidates: the op of a graph could not run panels."""
    monkeypatch.setattr(cpu, "CROWD", Crowd(5, of_class=False))
    x, y = torch.randn(12, 3), torch.arange(12) // 4
    run = functools.partial(pair_loss, labels=y, weighting=weigh.Triplet())
    found = []
    for call in (run, torch.compile(run, fullgraph=True, backend="aot_eager")):
        leaf = x.clone().requires_grad_()
        loss = call(leaf)
        found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
    torch.testing.assert_close(*found)
