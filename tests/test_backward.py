"""Gradients of every backend against the float64 reference, by error budget, and gradcheck."""

import functools

import pytest
import rounding
import torch
from cases import (
    BATCH_STEPS,
    DTYPES,
    EACH_BACKEND,
    REFS,
    SPECS,
    MultiSimilarityOptions,
    assert_within_budget,
    case_id,
    make_batch,
    random_rows,
)
from judge import check_backward, floors_of, gradients

import ms_kernels
from ms_kernels import reference
from ms_kernels.rules.weighting import MultiSimilarity


@EACH_BACKEND
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("name", "shape", "dtype"), BATCH_STEPS, ids=case_id)
def test_batch(backend, dtype, shape, name, reduction):
    n, d = shape
    check_backward(
        make_batch(n, None, d, SPECS[name], dtype), SPECS[name], dtype, backend, reduction
    )


@EACH_BACKEND
# How rows are reduced knows nothing of which pairs are kept.
@pytest.mark.parametrize(
    ("name", "reduction"),
    [("default", "sum"), ("default", "none"), ("unmined", "mean_valid"), ("unmined", "none")]
    + [("raw", "sum")],
)
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", REFS, ids=case_id)
def test_refs(backend, dtype, shape, name, reduction):
    check_backward(make_batch(*shape, SPECS[name], dtype), SPECS[name], dtype, backend, reduction)


@pytest.mark.parametrize("m", [None, 1003], ids=["self", "refs"])
def test_great_similarities_weigh_what_their_own_product_says(backend, m, monkeypatch):
    """Half an ulp of 1e10 is 512: a weight of another order of the product would be any number.

    The greatest pair of a row weighs 1, whatever its last bits are, so float32 is exact here.
    """
    monkeypatch.setattr(ms_kernels.options, "panel_bytes", 100_000)
    g = torch.Generator().manual_seed(0)
    n, spec = 701, MultiSimilarityOptions(normalize=False)
    x, r = (1e4 * torch.randn(rows, 128, generator=g) for rows in (n, m or 1))
    y, z = torch.arange(n) % 17, torch.arange(m or 1) % 17
    sides = (r, z) if m else (None, None)
    exact = gradients(
        reference.multi_similarity_loss,
        x.double(),
        y,
        *(s.double() if s is r else s for s in sides),
        "none",
        vars(spec),
    )
    chosen = {**vars(spec), "backend": backend}
    got = gradients(ms_kernels.multi_similarity_loss, x, y, *sides, "none", chosen)
    for ours, wanted in zip(got, exact, strict=True):
        assert (ours - wanted).abs().max() <= 1e-6 * wanted.abs().max()


@functools.cache
def long_sums():
    """A batch, its exact gradient, and one of exact weights whose 3000 products are added one by
    one in float32."""
    spec = MultiSimilarityOptions(epsilon=None)
    x, y = random_rows(3000, 64, 500, spec, torch.Generator().manual_seed(0))
    x = x.float()
    rows = reference.unit_rows(x.double())
    sim = (rows @ rows.T).requires_grad_()
    positive = y[:, None] == y
    kept = positive.clone().fill_diagonal_(False), ~positive
    loss = MultiSimilarity(spec.alpha, spec.beta, spec.base).row_loss(sim, *kept).mean()
    (weights,) = torch.autograd.grad(loss, sim)
    weights += weights.T.clone()

    def through_norm(g, rows, x):
        return (g - (g * rows).sum(1, keepdim=True) * rows) / x.norm(dim=1, keepdim=True)

    exact = through_norm(weights @ rows, rows, x.double())
    weights, rows, g = weights.float(), rows.float(), torch.zeros_like(x)
    for j in range(len(x)):
        g.addcmul_(weights[:, j : j + 1], rows[j : j + 1])
    return x, y, exact, through_norm(g, rows, x)


def test_long_sums_are_no_running_sums(backend):
    """With chains of 128 and weights of float32 similarities 0.86 times; one sum more than 1.2."""
    x, y, exact, running = long_sums()
    leaf = x.clone().requires_grad_()
    ms_kernels.multi_similarity_loss(leaf, y, epsilon=None, backend=backend).backward()
    errors = [(v.double() - exact).square().mean().sqrt() for v in (leaf.grad, running)]
    assert errors[0] <= 1.1 * errors[1]


@pytest.mark.parametrize(
    "options",
    [
        {"base": -1.0},
        {"alpha": 50.0, "base": 1.0},
        {"alpha": 1e3, "beta": 1e3, "base": 3.0},
        {"alpha": 1e4, "beta": 1e4},
    ],
    ids=str,
)
def test_large_exponents_cancel(backend, options):
    """Exponents and their log-sum-exps are rounded alike, however large scale times base is."""
    spec = MultiSimilarityOptions(**options)
    batch = make_batch(97, None, 16, spec, torch.float32)
    check_backward(batch, spec, torch.float32, backend, "mean")


def test_exponents_that_leave_a_grid_of_similarities(backend):
    """S - 1e4 has nothing left but multiples of 2^-10, which every correct rounding finds."""
    spec = MultiSimilarityOptions(alpha=1e4, beta=1e4, base=1e4)
    x, y, _, _ = make_batch(97, None, 16, spec, torch.float32)
    arguments = (y, None, None, "mean")
    (exact,) = gradients(reference.multi_similarity_loss, x.double(), *arguments, vars(spec))
    (same,) = gradients(reference.multi_similarity_loss, x, *arguments, vars(spec))
    chosen = {**vars(spec), "backend": backend}
    (got,) = gradients(ms_kernels.multi_similarity_loss, x, *arguments, chosen)
    worst = (same - exact).abs().max()
    assert 0.01 * exact.abs().max() < worst < exact.abs().max()
    assert (got - exact).abs().max() <= 2 * worst


@pytest.mark.parametrize("shape", [(97, 64), (193, 47), (257, 16)], ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined"])
def test_over_many_batches_the_error_is_one_standard_deviation(backend, name, shape):
    """The largest error of one batch is luck; the RMS error over twelve is not: 0.6 to 0.75."""
    spec, (n, d) = SPECS[name], shape
    arguments = (None, None, "mean")
    found = torch.zeros(2, dtype=torch.float64)
    for seed in range(1, 13):
        batch = make_batch(n, None, d, spec, torch.float32, seed)
        x, y = batch[:2]
        wide = x.double()
        (exact,) = gradients(reference.multi_similarity_loss, wide, y, *arguments, vars(spec))
        chosen = {**vars(spec), "backend": backend}
        (got,) = gradients(ms_kernels.multi_similarity_loss, x, y, *arguments, chosen)
        deviation = floors_of(batch, spec, "mean")[0] / rounding.DEVIATIONS
        sums = torch.stack([got.double() - exact, deviation]).square().mean((1, 2))
        found += sums / exact.square().mean()
    assert found[0] <= found[1]


# What each of them changes by many floors; others of the results may not notice.
FLAWS = {
    "base": ({"base": 0.5001}, ("pos_lse", "neg_lse", "loss", "rows", "dx")),
    "slack": ({"epsilon": 0.11}, ("pos_lse", "neg_lse", "loss", "rows", "dx")),
    "alpha": ({"alpha": 2.0005}, ("pos_lse", "loss", "rows", "dx")),
    "beta": ({"beta": 50.01}, ("neg_lse", "dx")),
}
QUANTITIES = ("hardest_positive", "hardest_negative", "pos_lse", "neg_lse", "rows", "loss", "dx")


def results(x, y, options):
    """Of each quantity, by the dense code."""
    function = reference.multi_similarity_loss
    losses = [function(x, y, reduction=reduction, **options) for reduction in ("none", "mean")]
    dx = gradients(function, x, y, None, None, "mean", options)
    statistics = reference.row_statistics(x, y, **options)[:4]
    return dict(zip(QUANTITIES, [*statistics, *losses, *dx], strict=True))


def floors_by_name(batch, spec, exact):
    floors = rounding.of_spec(batch, spec)
    found = floors.statistics([exact[name] for name in QUANTITIES[:4]])
    return dict(zip(QUANTITIES, [*found, floors.loss("none"), *floors.step("mean")], strict=True))


@pytest.mark.parametrize("flaw", FLAWS)
def test_the_budget_can_fail(flaw):
    """Wrong losses that a looser comparison would let pass."""
    spec = SPECS["default"]
    batch = make_batch(97, None, 64, spec, torch.float32)
    x, y = batch[:2]
    changed, noticed_by = FLAWS[flaw]
    exact = results(x.double(), y, vars(spec))
    got = results(x, y, {**vars(spec), **changed})
    floors = floors_by_name(batch, spec, exact)
    for name in noticed_by:
        with pytest.raises(AssertionError, match="exceeds the budget|other elements"):
            assert_within_budget(got[name], None, exact[name], floors[name])


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined", "raw"])
def test_an_error_of_a_few_floors_fails(name, dtype):
    """Of one element, in every quantity; and a floor is small beside what it is a floor of."""
    spec = SPECS[name]
    batch = make_batch(97, None, 64, spec, dtype)
    exact = results(batch.x.double(), batch.y, vars(spec))
    floors = floors_by_name(batch, spec, exact)
    of_half = dtype in (torch.bfloat16, torch.float16)
    u = torch.finfo(torch.float32 if of_half else dtype).eps
    for quantity, value in exact.items():
        floor, scale = floors[quantity], spec.beta if quantity in ("neg_lse", "dx") else 1
        of_result = of_half and quantity in ("rows", "loss", "dx")
        # 64 terms: 8 roundings of 6 deviations, of which an exponent makes beta times as many.
        most = 48 * scale * u + (8 * torch.finfo(dtype).eps if of_result else 0)
        assert floor.max() <= most * value[value.isfinite()].abs().max().clamp(min=1 / len(batch.x))
        for error, passes in ((0.5, True), (3.0, False)):
            got = value.clone()
            got.view(-1)[int(floor.argmax())] += error * floor.max()
            if passes:
                assert_within_budget(got, None, value, floor)
                continue
            with pytest.raises(AssertionError, match="exceeds the budget"):
                assert_within_budget(got, None, value, floor)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
@pytest.mark.parametrize("name", ["default", "unmined", "capped", "raw"])
def test_gradcheck(backend, name, reduction):
    spec = SPECS[name]
    x, y, _, _ = make_batch(14, None, 5, spec, torch.float64)
    function = ms_kernels.multi_similarity_loss
    options = {**vars(spec), "backend": backend, "reduction": reduction}
    assert torch.autograd.gradcheck(
        lambda x: function(x, y, **options), x.clone().requires_grad_(), eps=1e-7, atol=1e-5
    )


@pytest.mark.parametrize("with_ids", [False, True], ids=["no_ids", "ids"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("name", ["default", "unmined"])
def test_gradcheck_with_refs(backend, name, reduction, with_ids):
    spec = SPECS[name]
    x, y, r, z = make_batch(9, 12, 5, spec, torch.float64)
    ids = {"ids": torch.arange(9), "ref_ids": torch.arange(20, 8, -1)} if with_ids else {}
    options = {**vars(spec), "backend": backend, "reduction": reduction, **ids}
    assert torch.autograd.gradcheck(
        lambda x, r: ms_kernels.multi_similarity_loss(x, y, r, z, **options),
        (x.clone().requires_grad_(), r.clone().requires_grad_()),
        eps=1e-7,
        atol=1e-5,
    )
