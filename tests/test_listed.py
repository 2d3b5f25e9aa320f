"""Similarities of listed pairs against all of them, in every dtype; and what is refused."""

import pytest
import torch
from torch.autograd import forward_ad

from ms_kernels import options
from ms_kernels.api import listed
from ms_kernels.api.listed import listed_similarities
from ms_kernels.reference import similarities, unit_rows

DISTANCES = (None, "euclidean", "squared_euclidean")
N, M, D = 7, 9, 5


def sides(dtype, mutual=False):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator).bfloat16().to(dtype).requires_grad_()
    if mutual:
        return x, x
    return x, torch.randn(M, D, generator=generator).bfloat16().to(dtype).requires_grad_()


def lists(m, seed=1):
    generator = torch.Generator().manual_seed(seed)
    a = torch.randint(N, (40,), generator=generator)
    return a, torch.randint(m, (40,), generator=generator)


def wanted(x, r, distance, normalize):
    x, r = x.double(), r.double()
    return similarities(*(map(unit_rows, (x, r)) if normalize else (x, r)), distance)


@pytest.mark.parametrize("many", [0, 10**6], ids=["gathered", "products"])
@pytest.mark.parametrize("block", [1, 200, 1 << 20], ids=["one by one", "some", "at once"])
@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
@pytest.mark.parametrize("mutual", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_values_and_gradients(dtype, distance, mutual, normalize, block, many, monkeypatch):
    """Pairs that are listed twice count twice, and a row with itself is at distance 0."""
    monkeypatch.setattr(listed, "MANY", many)
    options.panel_bytes = block
    x, r = sides(dtype, mutual)
    a, b = lists(len(r))
    assert len({*zip(a.tolist(), b.tolist(), strict=True)}) < len(a)
    leaves = [x] if mutual else [x, r]
    worth = torch.linspace(1, 2, len(a), dtype=torch.float64)
    got = listed_similarities(x, r, a, b, normalize=normalize, distance=distance)
    want = wanted(x, r, distance, normalize)[a, b]
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    rtol = 1e-12 if dtype == torch.float64 else 1e-6
    assert got.dtype == wide
    torch.testing.assert_close(got.double(), want, rtol=rtol, atol=4 * rtol)
    grads = torch.autograd.grad((got * worth.to(wide)).sum(), leaves)
    their = torch.autograd.grad((want * worth).sum(), leaves)
    rounding = {torch.float16: 2**-10, torch.bfloat16: 2**-7}.get(dtype, 20 * rtol)
    for dx, their_dx in zip(grads, their, strict=True):
        atol = rounding * float(their_dx.abs().max())
        torch.testing.assert_close(dx, their_dx, rtol=0, atol=atol)


@pytest.mark.parametrize("many", [0, 10**6], ids=["gathered", "products"])
@pytest.mark.parametrize("distance", DISTANCES[1:])
def test_far_from_the_origin(distance, many, monkeypatch):
    monkeypatch.setattr(listed, "MANY", many)
    x, r = (side.detach() + 4096 for side in sides(torch.float32))
    a, b = lists(M)
    x.requires_grad_()
    got = listed_similarities(x, r, a, b, normalize=False, distance=distance)
    want = wanted(x, r, distance, False)[a, b]
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)
    (dx,), (their_dx,) = (torch.autograd.grad(v.sum(), x) for v in (got, want))
    torch.testing.assert_close(dx, their_dx, rtol=0, atol=1e-6 * float(their_dx.abs().max()))


def test_no_more_than_a_block_of_rows_is_gathered(monkeypatch):
    monkeypatch.setattr(listed, "MANY", 0)
    x, r = sides(torch.float32)
    a, b = lists(M)
    most, real = [], torch.Tensor.__getitem__
    monkeypatch.setattr(
        torch.Tensor,
        "__getitem__",
        lambda s, index: (
            most.append(found.numel()) or found
            if isinstance(found := real(s, index), torch.Tensor) and s.ndim == 2
            else found
        ),
    )
    options.panel_bytes = 4 * 3 * D * 4  # three pairs
    listed_similarities(x, r, a, b).sum().backward()
    assert len(most) >= 2 * 2 * 13 and max(most) == 3 * D


@pytest.mark.parametrize("mutual", [False, True])
def test_no_pairs(mutual):
    x, r = sides(torch.float32, mutual)
    none = torch.zeros(0, dtype=torch.int64)
    found = listed_similarities(x, r, none, none)
    assert found.shape == (0,)
    (dx,) = torch.autograd.grad(found.sum(), x)
    assert dx.shape == x.shape and not dx.any()


def test_refusals():
    x, r = sides(torch.float32)
    a, b = lists(M)
    with pytest.raises(ValueError, match=r"candidates: expected shape \(40,\).*got \(39,\)"):
        listed_similarities(x, r, a, b[1:])
    with pytest.raises(ValueError, match="distance: expected one of None, 'euclidean'"):
        listed_similarities(x, r, a, b, distance="cosine")
    value = listed_similarities(x, r, a, b).sum()
    with pytest.raises(RuntimeError, match="no second derivative.*in plain PyTorch"):
        torch.autograd.grad(value, x, create_graph=True)


@pytest.mark.parametrize("many", [0, 10**6], ids=["gathered", "products"])
@pytest.mark.parametrize("block", [1, 1 << 20])
def test_an_index_beyond_the_rows(many, block, monkeypatch):
    monkeypatch.setattr(listed, "MANY", many)
    options.panel_bytes = block
    x, r = sides(torch.float32)
    for beyond in ((N, 0), (0, M)):
        with pytest.raises(IndexError):
            listed_similarities(x, r, *(torch.tensor([0, index]) for index in beyond))


def test_autocast_does_not_round_it():
    x, r = sides(torch.float32)
    a, b = lists(M)
    want = listed_similarities(x, r, a, b)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(listed_similarities(x, r, a, b), want)


@pytest.mark.parametrize("transform", [torch.func.grad, torch.func.vmap], ids=["grad", "vmap"])
def test_transforms_are_refused(transform):
    x, a = torch.randn(2, 6, 3), torch.arange(6)
    x = x if transform is torch.func.vmap else x[0]
    with pytest.raises(RuntimeError, match="listed_similarities.*takes no part.*plain PyTorch"):
        transform(lambda x: listed_similarities(x, x, a, a).sum())(x)


def test_forward_mode_is_refused():
    x, a = torch.randn(6, 3), torch.arange(6)
    with pytest.raises(RuntimeError, match="takes no part|no forward-mode derivative"):
        torch.func.jvp(lambda x: listed_similarities(x, x, a, a), (x,), (x,))
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(x, x)
        with pytest.raises(RuntimeError, match="embeddings: expected no tangent"):
            listed_similarities(dual, x, a, a)
