"""Each degenerate batch has one answer, on every backend."""

import math

import pytest
import torch

import ms_kernels
from ms_kernels import multi_similarity_loss, reference


def loss_and_gradient(x, y, r=None, z=None, **options):
    leaves = [v.detach().clone().requires_grad_() for v in (x, r) if v is not None]
    loss = multi_similarity_loss(leaves[0], y, *([] if r is None else [leaves[1], z]), **options)
    assert loss.requires_grad
    loss.sum().backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)


def unit(n, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator, dtype=torch.float64)


NOTHING_TO_LEARN = {
    "empty": (unit(0), torch.zeros(0, dtype=torch.long), 0.1),
    "one_sample": (unit(1), torch.zeros(1, dtype=torch.long), 0.1),
    "one_sample_unmined": (unit(1), torch.zeros(1, dtype=torch.long), None),
    "no_positives": (unit(6), torch.arange(6), 0.1),
    "one_class": (unit(60), torch.zeros(60, dtype=torch.long), 0.1),
    "nothing_mined": (torch.eye(4, dtype=torch.float64).repeat(2, 1), torch.arange(8) % 4, 0.1),
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
@pytest.mark.parametrize("name", NOTHING_TO_LEARN)
def test_nothing_to_learn_costs_nothing(backend, name, reduction):
    x, y, epsilon = NOTHING_TO_LEARN[name]
    loss, dx = loss_and_gradient(x, y, epsilon=epsilon, reduction=reduction, backend=backend)
    assert torch.equal(loss, torch.zeros_like(loss))
    assert torch.equal(dx, torch.zeros_like(dx))
    assert loss.shape == ((len(x),) if reduction == "none" else ())


def test_nothing_mined_needs_mining(backend):
    x, y, _ = NOTHING_TO_LEARN["nothing_mined"]
    assert multi_similarity_loss(x, y, epsilon=None, backend=backend) > 0


@pytest.mark.parametrize(
    ("y", "epsilon"),
    [(torch.arange(70), None), (torch.zeros(70, dtype=torch.long), None)],
    ids=["only_negatives", "only_positives"],
)
def test_without_mining_one_kind_of_pair_is_enough(backend, y, epsilon):
    x = unit(70, 8)
    got = loss_and_gradient(x, y, epsilon=epsilon, backend=backend)
    want = loss_and_gradient(x, y, epsilon=epsilon, backend="reference")
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-12, atol=1e-14)
    assert got[0] > 0


def test_no_candidates(backend):
    x, r = unit(3), unit(0)
    none = torch.zeros(0, dtype=torch.long)
    loss, dx, dr = loss_and_gradient(x, torch.arange(3), r, none, backend=backend)
    assert loss == 0 and not dx.any() and dr.shape == (0, 4)
    loss, dx, dr = loss_and_gradient(r, none, x, torch.arange(3), backend=backend)
    assert loss == 0 and dx.shape == (0, 4) and not dr.any()


def test_no_depth(backend):
    x, y = torch.zeros(5, 0, dtype=torch.float64), torch.arange(5) // 2
    got = multi_similarity_loss(x, y, reduction="none", backend=backend)
    want = multi_similarity_loss(x, y, reduction="none", backend="reference")
    torch.testing.assert_close(got, want, rtol=1e-12, atol=0)
    assert loss_and_gradient(x, y, backend=backend)[1].shape == (5, 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_non_finite_sample_makes_every_loss_nan(backend, bad, normalize, reduction):
    x, y = unit(100, 20), torch.arange(100) // 5
    x[70, 3] = bad
    options = dict(normalize=normalize, reduction=reduction, backend=backend)
    loss, dx = loss_and_gradient(x, y, **options)
    assert loss.isnan().all() and dx.isnan().all()
    assert multi_similarity_loss(x, y, **options).isnan().all()  # without a gradient too


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_non_finite_anchor_spares_other_anchors(backend, reduction):
    x, y, r, z = unit(60), torch.arange(60) // 3, unit(80, seed=1), torch.arange(80) // 4
    x[7, 0] = math.nan
    loss, dx, dr = loss_and_gradient(x, y, r, z, reduction=reduction, backend=backend)
    rows = multi_similarity_loss(x, y, r, z, reduction="none", backend=backend)
    bad = torch.arange(60) == 7
    assert torch.equal(rows.isnan(), bad)
    assert torch.equal(dx.isnan().all(1), bad) and torch.equal(dx.isnan().any(1), bad)
    assert dr.isnan().all() and loss.isnan().any()


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_non_finite_candidate_reaches_every_anchor(backend, reduction):
    x, y, r, z = unit(60), torch.arange(60) // 3, unit(80, seed=1), torch.arange(80) // 4
    r[7, 0] = math.inf
    loss, dx, dr = loss_and_gradient(x, y, r, z, reduction=reduction, backend=backend)
    assert loss.isnan().all() and dx.isnan().all() and dr.isnan().all()


def test_overflowing_similarity_is_never_a_silent_number(backend):
    x, y = unit(100, 8).float(), torch.arange(100) // 4
    x[3] *= 1e30
    x[90] *= 1e30
    rows = multi_similarity_loss(x, y, normalize=False, reduction="none", backend=backend)
    want = reference.multi_similarity_loss(x, y, normalize=False, reduction="none")
    assert torch.equal(rows.isnan(), want.isnan()) and rows.isnan().any()
    _, dx = loss_and_gradient(x, y, normalize=False, backend=backend)
    assert dx.isnan().all()


def test_zero_tiny_and_huge_rows(backend):
    x, y = unit(60, 12), torch.arange(60) // 4
    x[0] = 0
    x[1] *= 1e-30
    x[2] *= 1e30
    got = loss_and_gradient(x, y, backend=backend)
    want = loss_and_gradient(x, y, backend="reference")
    torch.testing.assert_close(got[0], want[0], rtol=1e-12, atol=0)
    for row in range(60):  # gradients differ by 60 orders of magnitude: compare row by row
        torch.testing.assert_close(
            got[1][row], want[1][row], rtol=1e-10, atol=1e-12 * float(want[1][row].abs().max())
        )


STRICT = torch.eye(4)[[0, 1, 2, 0]], torch.tensor([0, 0, 1, 1])


def test_mining_is_strict(backend):
    """Similarities are 0 or 1 exactly: a pair that equals its threshold is not kept."""
    for name in (backend, "reference"):
        stats = ms_kernels.row_statistics(*STRICT, epsilon=0.0, backend=name)
        assert stats.pos_kept.tolist() == [1, 0, 0, 1]
        assert stats.neg_kept.tolist() == [1, 0, 0, 1]


def test_a_positive_at_the_cap_is_no_pair(backend):
    x, y = STRICT
    for name in (backend, "reference"):
        options = dict(epsilon=None, backend=name)
        stats = ms_kernels.row_statistics(x, y, max_positive_similarity=0.0, **options)
        assert not stats.pos_kept.any()
        stats = ms_kernels.row_statistics(x, y % 1, max_positive_similarity=1.0, **options)
        assert stats.pos_kept.tolist() == [2, 3, 3, 2]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_row_whose_square_overflows_is_still_a_direction(dtype):
    """The dense code normalises such a row to zeros; the kernels do better."""
    if "cpu" not in ms_kernels.backends.dispatch.built():
        pytest.skip("the compiled module is not built")
    x, y = unit(60, 12).to(dtype), torch.arange(60) // 4
    want = multi_similarity_loss(x, y, reduction="none", backend="cpu")
    largest = torch.finfo(dtype).max
    x[5] *= largest / x[5].abs().max()
    got, dx = loss_and_gradient(x, y, reduction="none", backend="cpu")
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
    assert dx.isfinite().all()


def test_a_huge_epsilon_still_mines(backend):
    """Without a positive there is no threshold that a negative could pass."""
    x, y = unit(60, 8).float(), torch.arange(60)
    assert multi_similarity_loss(x, y, epsilon=1e39, backend=backend) == 0
    assert multi_similarity_loss(x, y, epsilon=None, backend=backend) > 0


def test_duplicates_are_ordinary_positives(backend):
    x = unit(12, 6).repeat(4, 1)
    y = torch.arange(48) % 12
    got = loss_and_gradient(x, y, epsilon=None, backend=backend)
    want = loss_and_gradient(x, y, epsilon=None, backend="reference")
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-13)
    dropped = multi_similarity_loss(
        x, y, epsilon=None, max_positive_similarity=1 - 1e-5, backend=backend
    )
    assert dropped < got[0]


@pytest.mark.parametrize("count", [60, 300])
def test_ids_drop_pairs_anywhere(backend, count):
    x, y, r, z = unit(count), torch.arange(count) % 7, unit(90, seed=1), torch.arange(90) % 7
    ids = torch.arange(count) % 11 - 5
    ref_ids = torch.arange(90) % 13 * 10**15 - 5
    ref_ids[::2] = torch.arange(45) % 11 - 5
    for options in (dict(ids=ids), dict(ref_emb=r, ref_labels=z, ids=ids, ref_ids=ref_ids)):
        got = ms_kernels.row_statistics(x, y, backend=backend, **options)
        want = reference.row_statistics(x, y, **options)
        for g, w in zip(got, want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-12)


def test_refs_equal_to_the_batch_need_ids_to_skip_themselves(backend):
    x, y, i = unit(60), torch.arange(60) // 4, torch.arange(60)
    own = multi_similarity_loss(x, y, backend=backend)
    as_refs = multi_similarity_loss(x, y, x, y, ids=i, ref_ids=i, backend=backend)
    torch.testing.assert_close(own, as_refs, rtol=1e-12, atol=0)
    assert multi_similarity_loss(x, y, x.clone(), y, backend=backend) != own
    assert multi_similarity_loss(x, y, x, y, backend=backend) == own  # the very batch


@pytest.mark.parametrize("wanted", ["embeddings", "ref_emb"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_gradient_of_one_side_only(backend, wanted, reduction):
    x, y, r, z = unit(60), torch.arange(60) // 3, unit(80, seed=1), torch.arange(80) // 4
    _, dx, dr = loss_and_gradient(x, y, r, z, reduction=reduction, backend=backend)
    leaf = (x if wanted == "embeddings" else r).clone().requires_grad_()
    sides = (leaf, y, r, z) if wanted == "embeddings" else (x, y, leaf, z)
    multi_similarity_loss(*sides, reduction=reduction, backend=backend).sum().backward()
    assert torch.equal(leaf.grad, dx if wanted == "embeddings" else dr)
