"""Options that learn: their derivatives, in the kernels."""

import copy
from dataclasses import dataclass, fields

import pytest
import torch
from every_backend import NAMES, served
from learned_options import MININGS, OF_SCALE, OPTIONS, batch, compare, scalar
from torch import nn
from torch.autograd import gradcheck

import ms_kernels
from ms_kernels import (
    HardestMining,
    MultiSimilarityMining,
    NoMining,
    NTXentLoss,
    PairLoss,
    SupConLoss,
    ThresholdMining,
    TopKMining,
    multi_similarity_loss,
    pair_loss,
    row_statistics,
)
from ms_kernels.api.unit import scaled_rows
from ms_kernels.backends.interface import compute_dtype
from ms_kernels.engine import ops
from ms_kernels.engine.counted_pairs import gradient_of_options
from ms_kernels.reference import RowStatistics, unit_rows
from ms_kernels.rules import weighting as rules
from ms_kernels.rules.spec import WEIGHTINGS, PairSpec


def test_every_option_of_every_rule_is_here():
    for rule in WEIGHTINGS:
        assert dict(OPTIONS)[rule].keys() == {option.name for option in fields(rule)}


@pytest.mark.parametrize(
    ("rule", "name"),
    # Of m finite differences see the circle's factors move, which count as constants: see below.
    [(rule, name) for rule, options in OPTIONS for name in options if name != "m"],
    ids=str,
)
def test_gradcheck_of_every_option(rule, name):
    options = dict(OPTIONS)[rule]
    x, y = batch()

    def loss(x, value):
        return pair_loss(x, y, weighting=rule(**{**options, name: value}))

    if rule is rules.Circle:
        x = x.detach()
    else:
        x.requires_grad_()
    assert gradcheck(loss, (x, scalar(options[name])), atol=1e-6)


@pytest.mark.parametrize("distance", [None, "euclidean"])
def test_gradcheck_of_a_circle_in_triton(monkeypatch, distance):
    backend = served(monkeypatch, "triton")
    x, y = batch()

    def loss(value):
        given = {"weighting": rules.Circle(0.3, value), "distance": distance}
        return pair_loss(x, y, backend=backend, **given)

    assert gradcheck(loss, (scalar(4.0),), atol=1e-6)


@pytest.mark.parametrize("mining", MININGS, ids=str)
@pytest.mark.parametrize(("rule", "options"), OPTIONS, ids=str)
def test_as_in_dense_pytorch(rule, options, mining):
    given = {"mining": mining, "max_positive_similarity": 0.95}
    for refs in ((), batch(21, seed=1)):
        for distance, reduction in ((None, "mean_valid"), ("euclidean", "none")):
            how = {"distance": distance, "reduction": reduction, **given}
            compare(rule, options, "cpu", refs, **how)


@pytest.mark.parametrize("backend", ["panels", "triton", "cuda-one_launch"])
@pytest.mark.parametrize(("rule", "options"), OPTIONS, ids=str)
def test_other_backends(monkeypatch, rule, options, backend):
    backend = served(monkeypatch, backend)
    given = {"mining": MultiSimilarityMining(), "reduction": "none"}
    compare(rule, options, backend, (), **given)
    compare(rule, options, backend, batch(21, seed=1), distance="squared_euclidean", **given)


@pytest.mark.parametrize("backend", ["reference", "panels", "cpu", "triton", "cuda-one_launch"])
def test_where_a_factor_of_a_circle_leaves_0(monkeypatch, backend):
    """Its derivative by m is that of the side where it is 0: what the other side adds does not show
    in the weight of a pair, which is 0."""
    backend = served(monkeypatch, backend)
    x = torch.tensor([[1.0, 0], [1.5, 0], [-0.5, 0], [0.25, 0]], dtype=torch.float64)
    found = []
    for m in (0.5 - 1e-9, 0.5, 0.5 + 1e-9):  # S of the first and the third is -0.5
        m = scalar(m)
        given = {"weighting": rules.Circle(m, scalar(2.0)), "normalize": False}
        loss = pair_loss(x, torch.arange(4) // 2, backend=backend, reduction="sum", **given)
        found.append(torch.autograd.grad(loss, m)[0])
    torch.testing.assert_close(found[0], found[1], rtol=1e-7, atol=0)
    assert found[0] - found[2] > 1


def test_bits_do_not_hang_on_memory(monkeypatch):
    """Of tiles that list their pairs, keep similarities, or are computed again in several waves."""
    x, y = batch(1100, 8)
    mining = ThresholdMining(0.9, 0.25)
    for rule in (rules.MultiSimilarity, rules.BinomialDeviance, rules.Circle):
        found = []
        for memory in (2**28, 2**21, 1):
            monkeypatch.setattr(ms_kernels.options, "workspace_bytes", memory)
            values = [scalar(value).float() for value in dict(OPTIONS)[rule].values()]
            loss = pair_loss(x.float(), y, weighting=rule(*values), mining=mining)
            found.append(torch.autograd.grad(loss, values))
        assert found[0] == found[1] == found[2] and all(found[0])


@pytest.mark.parametrize("rule", [rules.MultiSimilarity, rules.Triplet], ids=str)
def test_sums_of_many_rows_do_not_hang_on_threads(rule):
    n, threads, found = 100_003, torch.get_num_threads(), []
    generator = torch.Generator().manual_seed(0)
    numbers = [torch.randn(n, generator=generator) for _ in range(5)]
    counts = [torch.ones(n, dtype=torch.int64)] * 2
    stats = RowStatistics(*numbers[:4], *counts, numbers[4])
    spec = PairSpec(rule(), NoMining())
    values = torch.tensor(list(dict(OPTIONS)[rule].values()))
    try:
        for count in (1, 2, 3, 7):
            torch.set_num_threads(count)
            of = spec, values, stats, numbers[0]
            losses = ops.row_loss_of(
                list(stats), numbers[:1][0][:, None], None, spec.pack(), "cpu", None
            )
            own = ops.row_loss_of(
                list(stats), numbers[0][:, None], None, spec.pack(), "cpu", values
            )
            found.append([gradient_of_options(*of, torch.zeros(4)), losses, own])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        for one, same in zip(found[0], other, strict=True):
            assert torch.equal(one, same)


@pytest.mark.parametrize("backend", ["cpu", "cuda-one_launch", "cuda-by_tiles"])
@pytest.mark.parametrize("rule", [rules.BinomialDeviance, rules.MultiSimilarity], ids=str)
def test_similarities_close_to_the_base(monkeypatch, rule, backend):
    """Nothing cancels that dense PyTorch has not lost: of collapsed rows, and of far ones."""
    generator = torch.Generator().manual_seed(0)
    backend = served(monkeypatch, backend)
    x = 1 + 1e-3 * torch.randn(600, 16, generator=generator, dtype=torch.float64)
    y = torch.arange(600) % 60
    errors = {}
    for judged in (backend, "reference"):
        exact, narrow = (
            torch.autograd.grad(
                pair_loss(x.to(dtype), y, weighting=rule(*values), backend=name), values
            )
            for name, dtype, values in (
                ("reference", torch.float64, [scalar(value) for value in (2.0, 5.0, 1.0)]),
                (judged, torch.float32, [scalar(value).float() for value in (2.0, 5.0, 1.0)]),
            )
        )
        pairs = zip(narrow, exact, strict=True)
        errors[judged] = [float((got.double() - want).abs() / want.abs()) for got, want in pairs]
    for ours, dense in zip(errors[backend], errors["reference"], strict=True):
        assert ours <= 4 * dense + 2**-22


def test_what_is_not_finite_and_what_is_worth_nothing():
    x, y = batch(20)
    r, z = batch(30, seed=1)
    x[3, 2] = torch.nan
    for backend in ("cpu", "reference"):
        refs, alpha = r.clone().requires_grad_(), scalar(2.0)
        given = {"weighting": rules.MultiSimilarity(alpha=alpha), "backend": backend}
        rows = pair_loss(x, y, refs, z, reduction="none", **given)
        rows.sum().backward()
        assert refs.grad.isnan().all() and alpha.grad.isnan()
        # An anchor that does not count may be NaN.
        mask = torch.arange(20) != 3
        alpha.grad = None
        pair_loss(x, y, refs, z, anchor_mask=mask, **given).backward()
        assert backend == "reference" or alpha.grad.isfinite()
    margin = scalar(0.2)
    x, y = batch(20)
    rows = pair_loss(x, torch.arange(20), weighting=rules.Triplet(margin), reduction="none")
    (found,) = torch.autograd.grad(rows, margin, torch.full((20,), torch.inf, dtype=rows.dtype))
    assert found == 0  # no anchor has a positive


def test_no_tangent_of_an_option():
    x, y = batch()
    with torch.autograd.forward_ad.dual_level():
        alpha = torch.autograd.forward_ad.make_dual(torch.tensor(2.0), torch.tensor(1.0))
        with pytest.raises(RuntimeError, match="option_values: expected no tangent, got one"):
            multi_similarity_loss(x, y, alpha=alpha)


@pytest.mark.parametrize("rows_learn", [True, False])
@pytest.mark.parametrize("memory", [2**26, 1])
@pytest.mark.parametrize("mining", [NoMining(), MultiSimilarityMining()], ids=str)
@pytest.mark.parametrize(("rule", "options"), OPTIONS[:3], ids=str)
def test_many_tiles(monkeypatch, rule, options, mining, memory, rows_learn):
    """Kept similarities and listed pairs, or neither; with rows that learn, or options alone."""
    monkeypatch.setattr(ms_kernels.options, "workspace_bytes", memory)
    if rows_learn:
        return compare(rule, options, "cpu", (), n=300, mining=mining)
    x, y = batch(300)
    found = []
    for backend in ("cpu", "reference"):
        values = {name: scalar(value) for name, value in options.items()}
        loss = pair_loss(x, y, weighting=rule(**values), mining=mining, backend=backend)
        found.append(torch.autograd.grad(loss, tuple(values.values())))
    torch.testing.assert_close(*found, rtol=1e-9, atol=1e-12)


def test_rows_are_panels_of_triton(monkeypatch):
    """More pairs than a panel holds: sums over all of them."""
    served(monkeypatch, "triton")
    monkeypatch.setattr(ms_kernels.options, "workspace_bytes", 1)
    x, y = batch(150)
    found = []
    for backend in ("triton", "cpu"):
        values = [scalar(value) for value in (2.0, 5.0, 0.3)]
        loss = pair_loss(x, y, weighting=rules.BinomialDeviance(*values), backend=backend)
        found.append(torch.autograd.grad(loss, values))
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_bits_do_not_hang_on_threads():
    x, y = batch(700, 8)
    found, threads = [], torch.get_num_threads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            values = [scalar(value).float() for value in (2.0, 50.0, 0.3)]
            loss = pair_loss(x.float(), y, weighting=rules.MultiSimilarity(*values))
            found.append(torch.autograd.grad(loss, values))
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2] and all(found[0])


def test_who_counts_and_what_is_not_finite():
    x, y = batch(30)
    weight = torch.linspace(0, 1, 30)
    found = []
    for backend in ("cpu", "reference"):
        alpha = scalar(2.0)
        given = {"alpha": alpha, "sample_weight": weight, "ignore_label": 2, "backend": backend}
        found.append(torch.autograd.grad(multi_similarity_loss(x, y, **given), alpha)[0])
    torch.testing.assert_close(*found)
    alpha = scalar(2.0)
    loss = multi_similarity_loss(x.index_fill(0, torch.tensor(4), torch.nan), y, alpha=alpha)
    loss.backward()
    assert loss.isnan() and alpha.grad.isnan()
    alpha = scalar(2.0)
    multi_similarity_loss(x[:0], y[:0], alpha=alpha).backward()
    assert alpha.grad == 0


def test_an_option_that_has_left_its_range():
    x, y = batch()
    with pytest.raises(ValueError, match="alpha: expected a finite number above 0, got -2"):
        multi_similarity_loss(x, y, alpha=scalar(-2.0))
    with pytest.raises(ValueError, match="temperature: expected a finite number above 0, got -0.1"):
        pair_loss(x, y, weighting=rules.NTXent(scalar(-0.1)))
    circle = rules.Circle(gamma=scalar(1e4))
    with pytest.raises(ValueError, match="as it has learned to be: gamma .* use backend='panels'"):
        pair_loss(x, y, weighting=circle, backend="cpu")
    # What the kernels leave to others goes on, in plain PyTorch.
    found = [pair_loss(x, y, weighting=circle, backend=name) for name in ("auto", "reference")]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("mining", [NoMining(), HardestMining(), TopKMining(3)], ids=str)
@pytest.mark.parametrize("rule", OF_SCALE, ids=lambda rule: rule.__name__)
@pytest.mark.parametrize("backend", NAMES)
def test_a_temperature_learns_in_the_kernels(monkeypatch, backend, rule, mining):
    backend = served(monkeypatch, backend)
    x, y = batch(30)
    r, z = batch(21, seed=1)
    for refs in ((), (r, z)):
        found = []
        for name in (backend, "reference"):
            leaves = [side.clone().requires_grad_() for side in (x, *refs[:1])]
            temperature = scalar(0.3)
            loss = pair_loss(
                leaves[0],
                y,
                *leaves[1:],
                *refs[1:],
                weighting=rule(temperature),
                mining=mining,
                backend=name,
                sample_weight=torch.linspace(1, 2, 30) if refs else None,
            )
            found.append((loss.detach(), *torch.autograd.grad(loss, (*leaves, temperature))))
        for got, want in zip(*found, strict=True):
            torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", ["reference", "panels", "cpu"])
def test_statistics_of_a_temperature_that_learns(monkeypatch, backend):
    """As of the number that it is; of other options that learn where kernels have them."""
    backend = served(monkeypatch, backend)
    x, y = batch(30)
    asked = {"backend": backend, "return_statistics": True}
    want = pair_loss(x, y, weighting=rules.NTXent(0.3), **asked)
    got = pair_loss(x, y, weighting=rules.NTXent(scalar(0.3)), **asked)
    for g, w in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        torch.testing.assert_close(g.detach(), w, rtol=1e-9, atol=1e-12)
    if backend != "cpu":
        with pytest.raises(ValueError, match="return_statistics: expected options that are numb"):
            multi_similarity_loss(x, y, alpha=scalar(2.0), **asked)
        return
    want = multi_similarity_loss(x, y, alpha=3.0, **asked)
    got = multi_similarity_loss(x, y, alpha=scalar(3.0), **asked)
    for g, w in zip((got[0], *got[1]), (want[0], *want[1]), strict=True):
        torch.testing.assert_close(g.detach(), w, rtol=1e-12, atol=1e-12)


def test_its_road_is_a_kernel_and_others_say_so(monkeypatch):
    from ms_kernels.backends import cpu

    seen = []
    for job in ("reduced_loss_and_gradient", "counted_loss"):
        real = getattr(cpu, job)
        monkeypatch.setattr(cpu, job, lambda *a, r=real, j=job: seen.append(j) or r(*a))
    x, y = batch()
    NTXentLoss(nn.Parameter(torch.tensor(0.1)), backend="cpu")(x.requires_grad_(), y).backward()
    assert seen == ["reduced_loss_and_gradient"]
    PairLoss(rules.Triplet(scalar(0.1)), backend="cpu")(x, y).backward()
    assert seen[1:] == ["counted_loss"]
    with pytest.raises(ValueError, match="backend: expected 'auto', 'panels' or 'reference' becau"):
        PairLoss(Own(scalar(0.1)), backend="cpu")


@dataclass(frozen=True)
class Own(rules.Weighting):
    scale: float = 1.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_dtypes(dtype):
    x, y = batch(30)
    temperature = nn.Parameter(torch.tensor(0.2))
    loss = NTXentLoss(temperature)(x.to(dtype).requires_grad_(), y)
    loss.backward()
    assert loss.dtype == dtype
    want = NTXentLoss(scalar(0.2))
    exact = want(x.to(dtype).double(), y)
    exact.backward()
    torch.testing.assert_close(loss.double(), exact, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(
        temperature.grad.double(), want.weighting.temperature.grad, rtol=1e-2, atol=1e-2
    )


def test_statistics_are_of_the_similarities():
    x, y = batch(30)
    for rule in (SupConLoss, NTXentLoss):
        module = rule(scalar(0.2), keep_statistics=True)
        module(x, y)
        want = row_statistics(x, y, weighting=rule(0.2).weighting)
        for got, exact in zip(module.statistics, want, strict=True):
            torch.testing.assert_close(got, exact)


def test_a_parameter_belongs_to_the_module():
    loss = NTXentLoss(nn.Parameter(torch.tensor(0.5)))
    assert [name for name, _ in loss.named_parameters()] == ["temperature"]
    twin = copy.deepcopy(loss)
    assert twin.weighting.temperature is twin.temperature is not loss.temperature
    twin.load_state_dict({"temperature": torch.tensor(0.25)})
    assert twin.weighting.temperature == 0.25 and loss.weighting.temperature == 0.5
    twin.load_state_dict({"temperature": torch.tensor(0.1)}, assign=True)
    x, y = batch(30)
    torch.testing.assert_close(twin(x, y), NTXentLoss(0.1)(x, y), rtol=1e-6, atol=1e-6)
    called = torch.func.functional_call(loss, {"temperature": torch.tensor(0.7)}, (x, y))
    torch.testing.assert_close(called, NTXentLoss(0.7)(x, y), rtol=1e-6, atol=1e-6)
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1)
    before = loss(x.float(), y)
    before.backward()
    optimizer.step()
    assert loss(x.float(), y) < before
    assert not list(NTXentLoss(torch.tensor(0.5)).parameters())


def test_compiled():
    x, y = batch(30)
    torch._dynamo.reset()
    mining = MultiSimilarityMining()
    losses = [PairLoss(rules.BinLifted(nn.Parameter(torch.tensor(2.0))), mining) for _ in range(2)]
    compiled = torch.compile(losses[0], fullgraph=True, backend="aot_eager")
    for run, loss in zip((compiled, losses[1]), losses, strict=True):
        leaf = x.float().requires_grad_()
        run(leaf, y).backward()
        loss.dx = leaf.grad
    torch.testing.assert_close(losses[0].alpha.grad, losses[1].alpha.grad)
    torch.testing.assert_close(losses[0].dx, losses[1].dx)


def test_a_mining_in_units_of_similarity():
    x, y = batch(30)
    temperature = scalar(0.2)
    rule = rules.NTXent(temperature)
    got = pair_loss(x, y, weighting=rule, mining=MultiSimilarityMining())
    want = pair_loss(x, y, weighting=rules.NTXent(0.2), mining=MultiSimilarityMining())
    torch.testing.assert_close(got, want)
    assert torch.autograd.grad(got, temperature)[0] != 0


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            torch.ones(2),
            r"temperature: expected a number or a floating-point tensor of shape",
        ),
        (torch.tensor(1), "got torch.int64 of shape"),
    ],
    ids=str,
)
def test_what_cannot_learn(value, message):
    with pytest.raises(TypeError, match=message):
        NTXentLoss(value)
    with pytest.raises(TypeError, match="weighting: expected options that are numbers"):
        ms_kernels.PairSpec(rules.NTXent(scalar(0.1)))


@pytest.mark.parametrize("times", [0.7, 0.0])
@pytest.mark.parametrize("lengths", ["usual", "overflowing", "vanishing", "every", "no rows"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=str)
def test_unit_rows_of_every_length(dtype, lengths, times):
    """Without a direction, with squares that overflow, or not finite: as of the reference."""
    rows = torch.randn(7, 5, generator=torch.Generator().manual_seed(0)).double()
    if lengths in ("vanishing", "every"):
        rows[1], rows[2] = 0, rows[2] * 1e-20
    if lengths in ("overflowing", "every"):
        largest = {torch.float64: 1e200, torch.float32: 1e30, torch.float16: 6e4}[dtype]
        rows[4] = rows[4] / rows[4].abs().max() * largest
    if lengths == "every":
        rows[3, 2] = torch.inf
    rows = rows[:0] if lengths == "no rows" else rows
    generator = torch.Generator().manual_seed(1)
    worth = torch.randn(rows.shape, generator=generator).to(compute_dtype(rows))
    found = []
    for of in (scaled_rows, lambda x, factor, _: unit_rows(x.to(compute_dtype(x))) * factor):
        x = rows.to(dtype).requires_grad_()
        factor = torch.tensor(times, dtype=compute_dtype(x), requires_grad=True)
        got = of(x, factor, True)
        incoming = worth.to(got.dtype).masked_fill(~got.isfinite(), 0)
        found.append([got, *torch.autograd.grad(got, (x, factor), incoming)])
    (got, dx, dfactor), (want, exact, wanted) = found
    torch.testing.assert_close(got, want, equal_nan=True)
    torch.testing.assert_close(dx, exact, equal_nan=True)
    assert dfactor.isnan() == wanted.isnan()


def test_several_gradients_of_unit_rows_at_once():
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    leaves = x.requires_grad_(), scalar(0.7)
    unit = scaled_rows(*leaves, True)
    worth = torch.randn(4, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    both = torch.autograd.grad(unit, leaves, worth, is_grads_batched=True, retain_graph=True)
    each = [torch.autograd.grad(unit, leaves, w, retain_graph=True) for w in worth]
    for got, want in zip(both, zip(*each, strict=True), strict=True):
        torch.testing.assert_close(got, torch.stack(want))


def test_statistics_alone_take_numbers():
    x, y = batch()
    with pytest.raises(TypeError, match="base: expected a number, got a tensor; statistics"):
        row_statistics(x, y, base=scalar(0.5))
    with pytest.raises(TypeError, match="temperature: expected a number, got a tensor"):
        row_statistics(x, y, weighting=rules.NTXent(scalar(0.5)))
