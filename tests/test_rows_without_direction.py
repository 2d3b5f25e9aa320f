"""A row whose norm is under 1e-12 has no direction: its gradient is 0, on every backend."""

import math

import every_backend
import pytest
import torch
from cases import DTYPES, case_id

import ms_kernels
from ms_kernels import multi_similarity_loss, pair_loss, reference, streamed_loss
from ms_kernels.rules import weighting as weigh

# Of a gradient, rounded to the dtype, as a part of its row's greatest element.
ULP = {torch.float64: 2.0**-36, torch.float32: 2.0**-16, torch.bfloat16: 2.0**-6}
ULP[torch.float16] = 2.0**-8


@pytest.fixture(params=every_backend.NAMES)
def backend(request, monkeypatch):
    return every_backend.served(monkeypatch, request.param)


def batch(dtype, n, d, seed=0):
    """Rows 0 to 4 have no direction; row 5 just has one."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    x /= x.norm(dim=1, keepdim=True)
    if dtype == torch.float16:  # its least number is 6e-8
        x[:5] = 0
    else:
        x[:6] *= torch.tensor([0, -0.0, 1e-40, 1e-20, 9e-13, 2e-12], dtype=x.dtype)[:, None]
        if dtype == torch.float64:
            x[2] *= 1e-270  # a denormal
    return x.to(dtype), torch.arange(n) // 4


def gradients(x, y, r=None, z=None, dloss=1.0, **options):
    leaves = [side.detach().clone().requires_grad_() for side in (x, r) if side is not None]
    loss = multi_similarity_loss(leaves[0], y, *leaves[1:], z, epsilon=None, **options)
    loss.backward(torch.full_like(loss, dloss))
    return loss.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("sides", ["self", "refs"])
def test_its_gradient_is_zero_and_others_are_as_ever(backend, dtype, reduction, sides):
    # The Triton kernels hold rows of 5 numbers whole, and take those of 70 by panels.
    x, y = batch(dtype, 24, 5 if sides == "self" else 70)
    r, z = batch(dtype, 20, 70, seed=1) if sides == "refs" else (None, None)
    got = gradients(x, y, r, z, reduction=reduction, backend=backend)
    wide = (x.double(), y, None if r is None else r.double(), z)
    want = gradients(*wide, reduction=reduction, backend="reference")
    torch.testing.assert_close(got[0].double(), want[0], rtol=16 * ULP[dtype], atol=16 * ULP[dtype])
    for found, exact in zip(got[1:], want[1:], strict=True):
        assert found.isfinite().all() and not found[:5].any() and not exact[:5].any()
        for rows in (slice(5, 6), slice(6, None)):  # the first is 1e12 times as long
            error = (found[rows].double() - exact[rows]).abs().max()
            assert error <= ULP[dtype] * exact[rows].abs().max()
        if dtype != torch.float16:
            assert exact[5].abs().max() > 1e9


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
def test_rows_of_one_number(backend, dtype):
    """Others are their sign, which nothing moves either."""
    small = 0.0 if dtype == torch.float16 else 3e-13
    x = torch.tensor([small, -small, 0.0, 2.0, -3.0, 0.5], dtype=dtype)[:, None]
    for reduction in ("sum", "none"):
        loss, dx = gradients(x, torch.arange(6) % 3, base=0.0, reduction=reduction, backend=backend)
        assert loss.isfinite().all() and not dx[:3].any() and dx.abs().max() < 1e-5


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_an_incoming_gradient_that_is_not_finite_shows(backend, reduction, bad):
    x, y = batch(torch.float32, 24, 5)
    _, dx = gradients(x, y, dloss=bad, reduction=reduction, backend=backend)
    assert not dx.isfinite().any()
    assert dx[:5].isnan().all()


def test_a_loss_that_is_not_finite_shows(backend):
    x, y = batch(torch.float32, 24, 5)
    x[20, 0] = math.nan
    for reduction in ("sum", "none"):
        loss, dx = gradients(x, y, reduction=reduction, backend=backend)
        assert loss.isnan().all() and dx.isnan().all()


@pytest.mark.parametrize("weighting", [weigh.NTXent(0.2), weigh.Triplet()], ids=repr)
def test_other_losses(backend, weighting):
    x, y = batch(torch.float32, 24, 5)
    for reduction in ("sum", "none"):
        leaf = x.clone().requires_grad_()
        rules = {"weighting": weighting, "reduction": reduction, "backend": backend}
        pair_loss(leaf, y, **rules).sum().backward()
        assert leaf.grad.isfinite().all() and not leaf.grad[:5].any() and leaf.grad[5:].any()


@pytest.mark.parametrize("learns", [False, True], ids=["swept", "checkpointed"])
@pytest.mark.parametrize("bad", [None, math.nan])
def test_losses_of_ones_own(learns, bad):
    x, y = batch(torch.float32, 24, 5)
    x, rule = x.requires_grad_(), weigh.NTXent(0.2)
    scale = torch.ones((), requires_grad=learns)
    loss = streamed_loss(lambda s, p, n: scale * rule.row_loss(s, p, n), x, y)
    loss.backward(None if bad is None else torch.full_like(loss, bad))
    assert x.grad.isnan().all() if bad is not None else not x.grad[:5].any() and x.grad[5:].any()


@pytest.mark.parametrize("backend", ["panels", "reference"])
def test_the_histogram_loss(backend):
    x, y = batch(torch.float64, 24, 5)
    x.requires_grad_()
    loss = pair_loss(x, y, weighting=ms_kernels.Histogram(20), backend=backend)
    (dx,) = torch.autograd.grad(loss, x, retain_graph=True)
    assert dx.isfinite().all() and not dx[:5].any() and dx[5:].any()
    (dx,) = torch.autograd.grad(loss, x, torch.full_like(loss, math.nan))
    assert dx.isnan().all()


def test_a_second_derivative_is_finite():
    x, y = torch.randn(6, 3, dtype=torch.float64), torch.arange(6) // 3
    x[0] = 0
    second = torch.autograd.functional.hessian(
        lambda x: multi_similarity_loss(x, y, epsilon=None, backend="reference"), x
    )
    assert second.isfinite().all() and not second[0].any() and second[1:, :, 1:].any()


def test_plain_pytorch_in_float16_has_the_same_answer():
    """Where the floor itself is rounded to 0."""
    x, y = batch(torch.float16, 24, 5)
    x.requires_grad_()
    loss = reference.multi_similarity_loss(x, y, epsilon=None)
    loss.backward()
    assert loss.isfinite() and not x.grad[:5].any() and x.grad[5:].any()
