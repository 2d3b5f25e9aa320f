"""What must hold for any batch."""

import torch
from hypothesis import given
from hypothesis import strategies as st

import ms_kernels
from ms_kernels import multi_similarity_loss

CLOSE = dict(rtol=1e-9, atol=1e-11)


@st.composite
def batches(draw):
    n = draw(st.integers(1, 60))
    d = draw(st.integers(1, 20))
    classes = draw(st.integers(1, n))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    y = torch.randint(classes, (n,), generator=generator)
    x = torch.randn(classes, d, generator=generator, dtype=torch.float64)[y]
    x = x + draw(st.sampled_from([0.1, 1.0])) * torch.randn(
        n, d, generator=generator, dtype=torch.float64
    )
    return x, y, torch.randperm(n, generator=generator), draw(st.sampled_from([0.1, None]))


def rows_and_gradient(x, y, epsilon, backend):
    x = x.clone().requires_grad_()
    rows = multi_similarity_loss(x, y, epsilon=epsilon, reduction="none", backend=backend)
    return rows.detach(), torch.autograd.grad(rows.sum(), x)[0]


def on_any_backend(test):
    there = [name for name, state in ms_kernels.backends().items() if state.available]

    def run(batch, backend):
        test(*batch, backend)

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return given(batches(), st.sampled_from(there))(run)


@on_any_backend
def test_order_of_samples_does_not_matter(x, y, order, epsilon, backend):
    rows, dx = rows_and_gradient(x, y, epsilon, backend)
    moved_rows, moved_dx = rows_and_gradient(x[order], y[order], epsilon, backend)
    torch.testing.assert_close(moved_rows, rows[order], **CLOSE)
    torch.testing.assert_close(moved_dx, dx[order], **CLOSE)


@on_any_backend
def test_names_of_labels_do_not_matter(x, y, order, epsilon, backend):
    names = torch.randperm(len(y), generator=torch.Generator().manual_seed(1)) * 10**12 - 5
    rows, dx = rows_and_gradient(x, y, epsilon, backend)
    named_rows, named_dx = rows_and_gradient(x, names[y], epsilon, backend)
    torch.testing.assert_close(named_rows, rows, **CLOSE)
    torch.testing.assert_close(named_dx, dx, **CLOSE)


@on_any_backend
def test_gradient_is_orthogonal_to_normalised_rows(x, y, order, epsilon, backend):
    _, dx = rows_and_gradient(x, y, epsilon, backend)
    scale = dx.norm(dim=1) * x.norm(dim=1) + 1e-3
    assert ((dx * x).sum(1).abs() / scale).max() < 1e-9


@on_any_backend
def test_length_of_rows_does_not_matter(x, y, order, epsilon, backend):
    length = 2.0 ** (order % 7 - 3)[:, None]  # powers of two change no bit of a unit row
    rows, dx = rows_and_gradient(x, y, epsilon, backend)
    long_rows, long_dx = rows_and_gradient(x * length, y, epsilon, backend)
    torch.testing.assert_close(long_rows, rows, **CLOSE)
    torch.testing.assert_close(long_dx * length, dx, **CLOSE)


@on_any_backend
def test_mining_empties_both_kept_sets_together(x, y, order, epsilon, backend):
    stats = ms_kernels.row_statistics(x, y, backend=backend)
    assert torch.equal(stats.pos_kept > 0, stats.neg_kept > 0)


@on_any_backend
def test_counts_are_those_of_the_mined_pairs(x, y, order, epsilon, backend):
    stats = ms_kernels.row_statistics(x, y, epsilon=epsilon, backend=backend)
    anchor, positive, also_anchor, negative = ms_kernels.mined_pairs(x, y, epsilon=epsilon)
    n = len(y)
    # Pairs may differ where a similarity ties with its threshold to the last bit.
    assert (torch.bincount(anchor, minlength=n) - stats.pos_kept).abs().sum() <= 2
    assert (torch.bincount(also_anchor, minlength=n) - stats.neg_kept).abs().sum() <= 2
    assert (y[anchor] == y[positive]).all() and (anchor != positive).all()
    assert (y[also_anchor] != y[negative]).all()


@on_any_backend
def test_loss_is_not_negative_and_gradient_linear_in_dloss(x, y, order, epsilon, backend):
    x = x.clone().requires_grad_()
    rows = multi_similarity_loss(x, y, epsilon=epsilon, reduction="none", backend=backend)
    assert (rows >= 0).all()
    a, b = torch.linspace(-1, 1, len(y)).double(), torch.linspace(2, 0, len(y)).double()
    da, db, both = (
        torch.autograd.grad(rows, x, weight, retain_graph=True)[0] for weight in (a, b, 3 * a - b)
    )
    torch.testing.assert_close(both, 3 * da - db, **CLOSE)
