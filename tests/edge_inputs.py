"""Whatever holds the numbers, dtypes, layouts and views, the loss is the same, on every backend."""

import pytest
import torch
from edges import loss_and_gradient, unit

import ms_kernels
from ms_kernels import multi_similarity_loss, reference


def test_float16_denormals_and_extremes(backend):
    x, y = unit(60, 12).to(torch.float16), torch.arange(60) // 4
    x[0] *= 6e-8
    x[1] *= 2e4
    x[2] = torch.finfo(torch.float16).tiny / 64
    got = multi_similarity_loss(x, y, reduction="none", backend=backend)
    want = multi_similarity_loss(x.double(), y, reduction="none", backend="reference")
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


def test_float16_denormals_survive_flushing():
    pytest.importorskip("ms_kernels._cpu")
    x, y = (1e-6 * unit(60)).to(torch.float16), torch.arange(60) // 4
    want = multi_similarity_loss(x.double(), y, backend="reference")
    try:
        torch.set_flush_denormal(True)
        got = multi_similarity_loss(x, y, backend="cpu")
    finally:
        torch.set_flush_denormal(False)
    torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_every_half_number_is_read_exactly(dtype):
    pytest.importorskip("ms_kernels._cpu")
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype)
    x = every[every.isfinite()][:, None]
    labels, one = torch.zeros(len(x), dtype=torch.int64), torch.ones(1, 1, dtype=dtype)
    refs = one, torch.ones(1, dtype=torch.int64)
    stats = ms_kernels.row_statistics(x, labels, *refs, normalize=False, backend="cpu")
    assert torch.equal(stats.hardest_negative, x[:, 0].float())


def test_layout_of_the_input_does_not_matter(backend):
    x, y = unit(70, 6), torch.arange(70) // 5
    want, dx = loss_and_gradient(x, y, backend=backend)
    wide = torch.cat([x, -x], 1)
    layouts = {
        "sliced": wide[:, :6],
        "transposed": x.T.contiguous().T,
        "every_other_row": x.repeat_interleave(2, 0)[::2],
        "every_other_column": torch.stack([x, -x], 2).view(70, 12)[:, ::2],
    }
    for name, same in layouts.items():
        assert torch.equal(same, x), name
        leaf = same.detach().requires_grad_()
        loss = multi_similarity_loss(leaf, y.repeat_interleave(2)[::2], backend=backend)
        loss.backward()
        torch.testing.assert_close(loss.detach(), want, rtol=1e-12, atol=0)
        torch.testing.assert_close(leaf.grad, dx, rtol=1e-10, atol=1e-14)
    for rows in (x[:1].expand(70, 6), x[:, :1].expand(70, 6)):
        assert 0 in rows.stride()
        got = multi_similarity_loss(rows, y, epsilon=None, backend=backend)
        same = multi_similarity_loss(rows.clone(), y, epsilon=None, backend=backend)
        torch.testing.assert_close(got, same, rtol=1e-12, atol=0)
    assert multi_similarity_loss(x, y[:1].expand(70), backend=backend) == 0


@pytest.mark.parametrize(
    "dtype",
    [torch.uint8, torch.int8, torch.int16, torch.int32, torch.uint16, torch.uint32, torch.uint64],
    ids=str,
)
def test_labels_of_any_integer_dtype(backend, dtype):
    x, y = unit(60), torch.arange(60) % 9
    want = multi_similarity_loss(x, y, backend=backend)
    assert torch.equal(multi_similarity_loss(x, y.to(dtype), backend=backend), want)


def test_labels_at_the_ends_of_int64(backend):
    x, y = unit(60), torch.arange(60) % 4
    far = torch.tensor([-(2**63), 2**63 - 1, -1, 0])[y]
    want = multi_similarity_loss(x, y, reduction="none", backend="reference")
    got = multi_similarity_loss(x, far, reduction="none", backend=backend)
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)
    got = multi_similarity_loss(x, far, x, far.flip(0), reduction="none", backend=backend)
    want = multi_similarity_loss(x, y, x, y.flip(0), reduction="none", backend="reference")
    torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-14)


def test_views_that_negate_are_resolved(backend):
    x, y = unit(60, 12), torch.arange(60) // 4
    view = torch.complex(torch.zeros_like(x), -x).conj().imag
    assert view.is_neg() and torch.equal(view, x)
    # Of rows that are all negated the loss is the same: not the gradient, and not that of refs.
    for refs in ((), (unit(40, 12), torch.arange(40) // 4)):
        found = []
        for given in (view, x):
            leaf = given.detach().requires_grad_()
            loss = multi_similarity_loss(leaf, y, *refs, backend=backend)
            found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
        assert all(map(torch.equal, *found))
    negated = torch._neg_view(-y)
    want = multi_similarity_loss(x, y, *refs, backend=backend)
    assert torch.equal(multi_similarity_loss(x, negated, *refs, backend=backend), want)


def test_autocast_gives_float32_and_rounds_nothing(backend):
    x, y = unit(60).float(), torch.arange(60) // 4
    want = multi_similarity_loss(x, y, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(multi_similarity_loss(x, y, backend=backend), want)
        half = multi_similarity_loss(x.bfloat16(), y, backend=backend)
    assert half.dtype == torch.float32


def test_the_reference_computes_half_in_float32():
    x, y = unit(60).bfloat16(), torch.arange(60) // 4
    want = reference.row_statistics(x.float(), y)
    plain = ms_kernels.row_statistics(x, y, backend="reference")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = multi_similarity_loss(x.float(), y, backend="reference")
        half = multi_similarity_loss(x, y, backend="reference")
        cast = ms_kernels.row_statistics(x.float(), y, backend="reference")
    for got in (*zip(plain, want, strict=True), *zip(cast, want, strict=True)):
        assert got[0].dtype == got[1].dtype and torch.equal(*got)
    assert loss.dtype == half.dtype == torch.float32
    assert torch.equal(loss, reference.multi_similarity_loss(x.float(), y))
    assert torch.equal(half, loss)
    assert multi_similarity_loss(x, y, backend="reference").dtype == torch.bfloat16


def test_backward_twice_gives_the_same(backend):
    for reduction in ("mean", "none"):
        x = unit(60).requires_grad_()
        loss = multi_similarity_loss(
            x, torch.arange(60) // 4, reduction=reduction, backend=backend
        ).sum()
        first = torch.autograd.grad(loss, x, retain_graph=True)[0]
        assert torch.equal(torch.autograd.grad(loss, x)[0], first)


def test_an_edit_in_place_never_gives_a_wrong_gradient(backend):
    x, y = unit(60).requires_grad_(), torch.arange(60) // 4
    want = torch.autograd.grad(multi_similarity_loss(x, y, backend=backend), x)[0]
    hidden = x * 1
    loss = multi_similarity_loss(hidden, y, backend=backend)
    hidden.mul_(2)
    assert torch.equal(torch.autograd.grad(loss, x)[0], want)
    hidden = x * 1
    loss = multi_similarity_loss(hidden, y, reduction="none", backend=backend)
    hidden.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.sum().backward()
