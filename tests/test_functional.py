"""The public function: gradients through autograd, reductions, and what bad input gets."""

import pytest
import torch

from ms_kernels import multi_similarity_loss


def batch(n=14, d=6, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    return x.requires_grad_(), torch.randint(4, (n,), generator=generator)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
@pytest.mark.parametrize("epsilon", [0.1, None])
def test_gradcheck(reduction, epsilon):
    (x, y), (r, z) = batch(), batch(seed=1)
    options = dict(reduction=reduction, epsilon=epsilon, backend="panels")
    assert torch.autograd.gradcheck(lambda a: multi_similarity_loss(a, y, **options), x)
    assert torch.autograd.gradcheck(
        lambda a, b: multi_similarity_loss(a, y, b, z, **options), (x, r)
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_error_is_within_twice_that_of_the_dense_code(reduction, dtype):
    x, y = batch(64, 24, dtype)
    # epsilon=None: rounding must not flip a kept pair, or the comparison would say nothing.
    run = lambda a, backend: multi_similarity_loss(  # noqa: E731
        a, y, epsilon=None, reduction=reduction, backend=backend
    )
    exact = run(x.double(), "reference")
    dense, got = run(x, "reference"), run(x, "panels")
    assert got.dtype == dtype
    allowed = 2 * (dense.double() - exact).abs().max() + 1e-6
    assert (got.double() - exact).abs().max() <= allowed


def test_second_derivative_names_the_way_out():
    x, y = batch()
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.autograd.grad(multi_similarity_loss(x, y), x, create_graph=True)


def test_an_edit_in_place_before_backward_is_refused():
    x, y = batch()
    hidden = x * 1
    loss = multi_similarity_loss(hidden, y)
    hidden.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_layout_of_the_input_does_not_matter():
    x, y = batch()
    want = multi_similarity_loss(x, y)
    sliced = torch.cat([x, x], 1)[:, :6]
    turned = x.T.contiguous().T
    assert multi_similarity_loss(sliced, y) == want
    assert multi_similarity_loss(turned, y) == want
    expanded = x[:1].expand(14, 6)
    torch.testing.assert_close(
        multi_similarity_loss(expanded, y), multi_similarity_loss(expanded.clone(), y)
    )


def test_labels_of_any_integer_dtype_and_extremes():
    x, y = batch()
    want = multi_similarity_loss(x, y)
    for dtype in (torch.uint8, torch.int8, torch.int16, torch.int32):
        assert multi_similarity_loss(x, y.to(dtype)) == want
    far = torch.tensor([-(2**63), 2**63 - 1, -1, 0])[y]
    assert multi_similarity_loss(x, far) == want


def test_autocast_gives_float32():
    x, y = batch(dtype=torch.bfloat16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert multi_similarity_loss(x, y).dtype == torch.float32


def test_autocast_does_not_round_similarities():
    x, y = batch(dtype=torch.float32)
    want = multi_similarity_loss(x, y)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert multi_similarity_loss(x, y) == want


X, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.long)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((X[0], Y), {}, ValueError, r"embeddings: expected shape \(N, D\), got \(3,\)"),
        ((X.long(), Y), {}, TypeError, "embeddings: expected float16.*got torch.int64"),
        ((X, Y[:3]), {}, ValueError, r"labels: expected shape \(4,\).*got \(3,\)"),
        ((X, Y.float()), {}, TypeError, "labels: expected an integer dtype, got torch.float32"),
        ((X, Y.bool()), {}, TypeError, "labels: expected an integer dtype, got torch.bool"),
        ((X, Y, X), {}, ValueError, "ref_labels: expected a tensor because ref_emb was given"),
        ((X, Y, None, Y), {}, ValueError, "ref_emb: expected a tensor because ref_labels"),
        ((X, Y, X[:, :2], Y), {}, ValueError, r"ref_emb: expected shape \(M, 3\).*got \(4, 2\)"),
        ((X, Y, X.double(), Y), {}, TypeError, "ref_emb: expected dtype torch.float32"),
        ((X, Y, X, Y), {"ids": Y}, ValueError, "ids, ref_ids: expected both or neither"),
        ((X, Y), {"reduction": "avg"}, ValueError, "reduction: expected one of.*got 'avg'"),
        ((X, Y), {"backend": "gpu"}, ValueError, "backend: expected one of.*got 'gpu'"),
        ((X, Y), {"alpha": 0}, ValueError, "alpha: expected a number above 0, got 0"),
    ],
)
def test_bad_input_is_named(arguments, options, error, message):
    with pytest.raises(error, match=message):
        multi_similarity_loss(*arguments, **options)
