"""Options at the ends of float32's range, and exponents beyond them: never a silent number."""

import every_backend
import pytest
import torch
from cases import BACKENDS

import ms_kernels
from ms_kernels import multi_similarity_loss, pair_loss
from ms_kernels.rules import weighting as weigh

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(40) // 4
MADE = {
    "loss": lambda **options: multi_similarity_loss(X, Y, **options),
    "module": ms_kernels.MultiSimilarityLoss,
    "rule": weigh.MultiSimilarity,
    "statistics": lambda **options: ms_kernels.row_statistics(X, Y, **options),
    "pairs": lambda **options: ms_kernels.pair_weights(weigh.MultiSimilarity(**options), X, Y),
}


@pytest.mark.parametrize("make", MADE.values(), ids=MADE)
@pytest.mark.parametrize("name", ["alpha", "beta", "base"])
def test_options_of_the_ms_loss_that_float32_cannot_hold(make, name):
    for value in (1e39, 1e31, 1e300) + ((-1e39,) if name == "base" else (1e-46, 1e-31)):
        least = "-1e.30" if name == "base" else "1e-30"
        with pytest.raises(ValueError, match=f"^{name}: expected a number from {least} to 1e.30"):
            make(**{name: value})


@pytest.fixture(params=["panels", "cpu", "cuda-one_launch", "cuda-by_tiles"])
def backend(request, monkeypatch):
    return every_backend.served(monkeypatch, request.param)


def step(x, backend, reduction, **rules):
    leaf = x.clone().requires_grad_()
    loss = pair_loss(leaf, Y, backend=backend, reduction=reduction, **rules)
    loss.sum().backward()
    return loss.detach(), leaf.grad


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(
    "extreme",
    [{"alpha": 1e30}, {"alpha": 1e-30}, {"beta": 1e30}, {"beta": 1e-30}, {"base": 1e30}]
    + [{"base": -1e30}, {"base": 0.0}],
    ids=str,
)
def test_options_of_the_ms_loss_at_their_ends(backend, extreme, dtype):
    rules = {"weighting": weigh.MultiSimilarity(**extreme)}
    # In two passes panels see S_ij and S_ji, which may be two products: 1e30 tells them apart.
    for reduction in ("sum",) if backend == "panels" and "beta" in extreme else ("none", "sum"):
        got = step(X.to(dtype), backend, reduction, **rules)
        want = step(X, "reference", reduction, **rules)
        for found, exact in zip(got, want, strict=True):
            assert found.isfinite().all()
            size = float(exact.abs().max())
            # The hardest pair of an anchor weighs all, whichever rounding says it is.
            slack = 2e-3 if dtype == torch.float32 else 1e-9
            torch.testing.assert_close(found.double(), exact, rtol=slack, atol=slack * size)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_circle_that_overflows_is_infinite(backend, reduction):
    """Similarities of 1e20, times 80 and squared, are too much for float32."""
    x = 1e10 * X.float()
    rules = {"weighting": weigh.Circle(), "normalize": False}
    loss, dx = step(x, backend, reduction, **rules)
    want, _ = step(x, "reference", reduction, **rules)
    assert want.isinf().any() and not want.isnan().any()
    assert torch.equal(loss, want)
    assert dx.isnan().any()


@pytest.mark.parametrize(
    "weighting", [weigh.BinLifted(), weigh.LiftedStructure(), weigh.NCA(), weigh.NTXent()], ids=repr
)
def test_a_great_norm_alone_is_not_too_much(backend, weighting):
    """Exponents up to 1e23: their differences decide, which float32 holds."""
    x = 1e10 * X.float()
    loss, dx = step(x, backend, "none", weighting=weighting, normalize=False)
    want, exact = step(x.double(), "reference", "none", weighting=weighting, normalize=False)
    torch.testing.assert_close(loss.double(), want, rtol=1e-5, atol=1e-5 * float(want.max()))
    torch.testing.assert_close(dx.double(), exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.parametrize("backend", ["panels", "cpu"])
def test_a_great_beta_makes_no_weight_of_rounding(backend):
    """No pair weighs more than 1, whatever the difference of S_ij and S_ji is, times beta."""
    x = torch.randn(200, 6, dtype=torch.float64)
    y = torch.arange(200) // 4
    leaf = x.clone().requires_grad_()
    options = {"beta": 1e30, "epsilon": None, "backend": backend}
    multi_similarity_loss(leaf, y, reduction="none", **options).sum().backward()
    assert leaf.grad.isfinite().all()


def learned(x, y, **options):
    return pair_loss(x, y, weighting=weigh.NTXent(torch.tensor(1e-3)), **options)


def counted(x, y, **options):
    weight = torch.ones(len(x))
    return pair_loss(x, y, weighting=weigh.Triplet(1.0), sample_weight=weight, **options)


def own(x, y, *, backend="auto", **options):
    return ms_kernels.streamed_loss(lambda s, p, n: 40 * (s * n).square().sum(1), x, y, **options)


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize(
    ("loss", "backend"),
    [
        *[(ms_kernels.TripletLoss(1.0, reduction="sum", backend=b), b) for b in BACKENDS],
        (ms_kernels.TripletLoss(1.0, reduction="sum", backend="reference"), "reference"),
        (learned, "auto"),
        (counted, "auto"),
        (own, "auto"),
    ],
    ids=lambda v: v if isinstance(v, str) else getattr(v, "__name__", type(v).__name__),
)
def test_sums_of_half_are_float32(loss, backend, dtype, compiled):
    """float16 ends at 65,504; what is summed here is more."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(160, 8, generator=generator), torch.arange(160) // 8
    x = x.to(dtype).requires_grad_()
    options = {} if isinstance(loss, torch.nn.Module) else {"reduction": "sum"}
    run = torch.compile(loss) if compiled else loss
    got, want = (run(x, y, **options), loss(x.detach().double(), y, **options))
    assert got.dtype == torch.float32 and 65504 < want < torch.inf
    torch.testing.assert_close(got.double(), want.double(), rtol=1e-2, atol=0)
    (dx,) = torch.autograd.grad(got, x)
    assert dx.dtype == dtype and dx.isfinite().all() and dx.any()
