"""The dense reference against numbers worked by hand and a loop straight from the equations."""

import inspect
import math

import pytest
import torch
from cases import MultiSimilarityOptions

import ms_kernels
from ms_kernels import reference
from ms_kernels.reference import multi_similarity_loss, row_statistics


def batch(n=12, d=5, classes=3, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64).to(dtype)
    return x, torch.randint(classes, (n,), generator=generator)


def loop_loss(x, y, alpha=2.0, beta=50.0, base=0.5, epsilon=0.1):
    """One anchor at a time, one pair at a time, from the equations."""
    x = x / x.norm(dim=1, keepdim=True)
    losses = []
    for i in range(len(x)):
        positives = [float(x[i] @ x[j]) for j in range(len(x)) if y[j] == y[i] and j != i]
        negatives = [float(x[i] @ x[j]) for j in range(len(x)) if y[j] != y[i]]
        least, most = min(positives, default=math.inf), max(negatives, default=-math.inf)
        if epsilon is not None:
            positives = [s for s in positives if s < most + epsilon]
            negatives = [s for s in negatives if s > least - epsilon]
        losses.append(
            math.log1p(sum(math.exp(-alpha * (s - base)) for s in positives)) / alpha
            + math.log1p(sum(math.exp(beta * (s - base)) for s in negatives)) / beta
        )
    return torch.tensor(losses, dtype=torch.float64)


@pytest.mark.parametrize("epsilon", [0.1, -0.2, None])
@pytest.mark.parametrize("classes", [1, 3, 50])
def test_equals_a_loop_over_pairs(epsilon, classes):
    x, y = batch(classes=classes)
    got = multi_similarity_loss(x, y, epsilon=epsilon, reduction="none")
    torch.testing.assert_close(got, loop_loss(x, y, epsilon=epsilon), rtol=1e-12, atol=1e-12)


def test_numbers_worked_by_hand():
    # Anchors 0 and 1 are orthogonal positives; row 2 equals row 0 and is their only negative.
    x = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([7, 7, -3])
    stats = row_statistics(x, y)
    assert stats.hardest_positive.tolist() == [0.0, 0.0, math.inf]
    assert stats.hardest_negative.tolist() == [1.0, 0.0, 1.0]
    assert stats.pos_kept.tolist() == [1, 1, 0]
    assert stats.neg_kept.tolist() == [1, 1, 0]
    pull = math.log1p(math.exp(1.0)) / 2  # -alpha (0 - base) = 1
    want = [
        pull + math.log1p(math.exp(25.0)) / 50,
        pull + math.log1p(math.exp(-25.0)) / 50,
        0.0,
    ]
    got = multi_similarity_loss(x, y, reduction="none")
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))
    torch.testing.assert_close(float(multi_similarity_loss(x, y)), sum(want) / 3)
    torch.testing.assert_close(
        float(multi_similarity_loss(x, y, reduction="mean_valid")), sum(want) / 2
    )


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
@pytest.mark.parametrize("epsilon", [0.1, None])
def test_gradcheck(reduction, epsilon):
    x, y = batch(n=8, d=4)
    r, z = batch(n=6, d=4, seed=1)
    x.requires_grad_()
    r.requires_grad_()
    options = dict(reduction=reduction, epsilon=epsilon)
    assert torch.autograd.gradcheck(lambda a: multi_similarity_loss(a, y, **options), x)
    assert torch.autograd.gradcheck(
        lambda a, b: multi_similarity_loss(a, y, b, z, **options), (x, r)
    )


def test_refs_with_ids_equal_self_mode():
    x, y = batch()
    i = torch.arange(len(x))
    torch.testing.assert_close(
        multi_similarity_loss(x, y, x, y, ids=i, ref_ids=i), multi_similarity_loss(x, y)
    )


@pytest.mark.parametrize("n", [0, 1])
def test_a_batch_without_pairs_is_zero_and_connected(n):
    x = torch.randn(n, 4, requires_grad=True)
    loss = multi_similarity_loss(x, torch.zeros(n, dtype=torch.long))
    loss.backward()
    assert loss.item() == 0.0
    assert x.grad.abs().sum() == 0.0


def test_kept_sets_are_empty_together():
    for seed in range(20):
        x, y = batch(n=40, d=16, classes=8, seed=seed)
        stats = row_statistics(x, y)
        assert torch.equal(stats.pos_kept > 0, stats.neg_kept > 0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_non_finite_embedding_gives_nan(bad):
    x, y = batch()
    x[3, 1] = bad
    assert multi_similarity_loss(x, y).isnan()


def test_duplicates_drop_out_only_on_request():
    x, _ = batch(n=4)
    x[1] = x[0]
    y = torch.tensor([0, 0, 1, 1])
    assert row_statistics(x, y, epsilon=None).pos_kept.tolist() == [1, 1, 1, 1]
    kept = row_statistics(x, y, epsilon=None, max_positive_similarity=1 - 1e-5).pos_kept
    assert kept.tolist()[:2] == [0, 0]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (dict(alpha=0.0), ValueError, "alpha: expected a finite number above 0, got 0.0"),
        (dict(beta=-1.0), ValueError, "beta: expected a finite number above 0, got -1.0"),
        (dict(base=math.nan), ValueError, "base: expected a finite number, got nan"),
        (dict(epsilon="x"), TypeError, "epsilon: expected a finite number or None, got 'x'"),
    ],
)
def test_options_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        assert MultiSimilarityOptions(**options).spec


# What the oracle is not asked: other rules, the road, and which of its rows count.
BESIDE = ("weighting", "mining", "backend", "ignore_label", "anchor_mask", "sample_weight")
BESIDE += ("return_statistics",)


@pytest.mark.parametrize("function", ["multi_similarity_loss", "row_statistics"])
def test_the_oracle_has_the_defaults_of_what_it_judges(function):
    ours, oracle = (
        {
            name: p.default
            for name, p in inspect.signature(getattr(of, function)).parameters.items()
            if name not in BESIDE
        }
        for of in (ms_kernels, reference)
    )
    assert ours == oracle
