"""Gradients of every backend against the float64 reference, by error budget, and gradcheck."""

import pytest
import torch
from cases import (
    BATCH_CASES,
    DTYPES,
    REFS,
    SPECS,
    assert_within_budget,
    case_id,
    factor_of,
    make_batch,
    random_rows,
)

import ms_kernels
from ms_kernels import MultiSimilaritySpec, reference


def gradients(function, x, y, r, z, reduction, options):
    leaves = [v.clone().requires_grad_() for v in (x, r) if v is not None]
    loss = function(
        leaves[0], y, leaves[1] if r is not None else None, z, reduction=reduction, **options
    )
    weight = torch.linspace(-1, 2, loss.numel(), dtype=torch.float64).view(loss.shape)
    loss.backward(weight.to(loss))
    return [leaf.grad for leaf in leaves]


def check(batch, spec, dtype, backend, reduction):
    x, y, r, z = batch
    options = vars(spec)
    wide = None if r is None else r.double()
    dense = reference.multi_similarity_loss
    exact = gradients(dense, x.double(), y, wide, z, reduction, options)
    same = gradients(dense, x, y, r, z, reduction, options)
    got = gradients(
        ms_kernels.multi_similarity_loss, x, y, r, z, reduction, {**options, "backend": backend}
    )
    for g, s, e in zip(got, same, exact, strict=True):
        assert g.dtype == dtype
        assert_within_budget(g, s, e, factor_of(dtype))


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize(("name", "shape"), BATCH_CASES, ids=case_id)
def test_batch(backend, dtype, shape, name, reduction):
    n, d = shape
    check(make_batch(n, None, d, SPECS[name], dtype), SPECS[name], dtype, backend, reduction)


@pytest.mark.parametrize("reduction", ["sum", "mean_valid", "none"])
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", REFS, ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined", "raw"])
def test_refs(backend, dtype, shape, name, reduction):
    check(make_batch(*shape, SPECS[name], dtype), SPECS[name], dtype, backend, reduction)


def test_long_sums_err_no_more_than_the_dense_code(backend):
    """3000 terms an element: one running sum of them errs 1.6 times as much."""
    spec = MultiSimilaritySpec(epsilon=None)
    generator = torch.Generator().manual_seed(0)
    x, y = (
        v.float() if v.is_floating_point() else v
        for v in random_rows(3000, 64, 500, spec, generator)
    )
    dense = reference.multi_similarity_loss
    options = vars(spec)
    (exact,) = gradients(dense, x.double(), y, None, None, "mean", options)
    (same,) = gradients(dense, x, y, None, None, "mean", options)
    options = {**options, "backend": backend}
    (got,) = gradients(ms_kernels.multi_similarity_loss, x, y, None, None, "mean", options)
    rms = [(v.double() - exact).square().mean().sqrt() for v in (got, same)]
    assert rms[0] <= 1.3 * rms[1]  # 1.03 to 1.11 with chains of 128


@pytest.mark.parametrize(
    "options",
    [
        {"base": -1.0},
        {"alpha": 50.0, "base": 1.0},
        {"alpha": 1e3, "beta": 1e3, "base": 3.0},
        {"alpha": 1e4, "beta": 1e4},
        {"alpha": 1e4, "beta": 1e4, "base": 1e4},
    ],
    ids=str,
)
def test_large_exponents_cancel_as_in_the_dense_code(backend, options):
    """Exponents and their log-sum-exps are rounded alike, however large scale times base is."""
    spec = MultiSimilaritySpec(**options)
    x, y, _, _ = make_batch(97, None, 16, spec, torch.float32)
    arguments = (y, None, None, "mean")
    (exact,) = gradients(reference.multi_similarity_loss, x.double(), *arguments, vars(spec))
    (same,) = gradients(reference.multi_similarity_loss, x, *arguments, vars(spec))
    chosen = {**vars(spec), "backend": backend}
    (got,) = gradients(ms_kernels.multi_similarity_loss, x, *arguments, chosen)
    assert_within_budget(got, same, exact)


@pytest.mark.parametrize("shape", [(97, 64), (193, 47), (257, 16)], ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined"])
def test_over_many_batches_the_error_is_that_of_the_dense_code(backend, name, shape):
    """The largest error of one batch is luck; the RMS error over twelve is not: 0.84 to 1.11."""
    spec, (n, d) = SPECS[name], shape
    dense, options = reference.multi_similarity_loss, vars(spec)
    errors = torch.zeros(2, dtype=torch.float64)
    for seed in range(1, 13):
        x, y, _, _ = make_batch(n, None, d, spec, torch.float32, seed)
        (exact,) = gradients(dense, x.double(), y, None, None, "mean", options)
        (same,) = gradients(dense, x, y, None, None, "mean", options)
        chosen = {**options, "backend": backend}
        (got,) = gradients(ms_kernels.multi_similarity_loss, x, y, None, None, "mean", chosen)
        found = torch.stack([got.double() - exact, same.double() - exact])
        errors += found.square().mean((1, 2)) / exact.square().mean()
    assert errors[0].sqrt() <= 1.3 * errors[1].sqrt()


@pytest.mark.parametrize("flaw", ["base", "slack", "scale"])
def test_the_budget_can_fail(flaw):
    """Three wrong losses that a looser comparison would let pass."""
    spec = SPECS["default"]
    x, y, _, _ = make_batch(97, None, 64, spec, torch.float32)
    wrong = {
        "base": {**vars(spec), "base": 0.5001},
        "slack": {**vars(spec), "epsilon": 0.11},
        "scale": {**vars(spec), "beta": 50.01},
    }[flaw]
    dense = reference.multi_similarity_loss
    exact = gradients(dense, x.double(), y, None, None, "mean", vars(spec))
    same = gradients(dense, x, y, None, None, "mean", vars(spec))
    got = gradients(dense, x, y, None, None, "mean", wrong)
    with pytest.raises(AssertionError, match="exceeds the budget"):
        assert_within_budget(got[0], same[0], exact[0])


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
