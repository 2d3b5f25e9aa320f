"""Losses far below the sums that they are made of keep their digits, and count as active."""

import every_backend
import pytest
import torch
from torch.nn.functional import one_hot

from ms_kernels import pair_loss
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.softmax import NCA, SupCon

RULES = [SupCon(0.05), NCA(0.05), weigh.MultiSimilarity(40.0, 50.0, 0.5)]


def tight_pairs(seed, noise=0.05, hard=4, n=64, depth=64):
    """Two rows a class, close to each other and square to all others, but for some at random."""
    numbers = torch.Generator().manual_seed(seed)
    x = one_hot(torch.arange(n) // 2, depth) + noise * torch.randn(n, depth, generator=numbers) / 8
    x[:hard] = torch.randn(hard, depth, generator=numbers)
    return x, torch.arange(n) // 2


@pytest.mark.parametrize("name", every_backend.NAMES)
@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_small_loss_keeps_its_digits(name, rule, monkeypatch):
    backend = every_backend.served(monkeypatch, name)
    x, y = tight_pairs(0)
    how = {"weighting": rule, "reduction": "none"}
    want = pair_loss(x.double(), y, backend="reference", **how)
    got = pair_loss(x, y, backend=backend, **how)
    assert want.min() < 1e-6
    # An exponent of 20 is off by 1e-6 at most, and so is each term.
    torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("temperature", [0.1, 0.05, 0.04])
def test_active_anchors_are_those_that_are_not_lost_against_1(seed, temperature):
    """The library's own are, but for its rounding: near the bound of float32 a loss is noise."""
    theirs = pytest.importorskip("pytorch_metric_learning").losses
    from ms_kernels.compat.pytorch_metric_learning import losses as ours

    x, y = tight_pairs(seed)
    exact = pair_loss(x.double(), y, weighting=SupCon(temperature), reduction="none")
    got = ours.SupConLoss(temperature=temperature)(x, y)
    torch.testing.assert_close(got.double(), exact[exact > 2**-24].mean(), rtol=1e-5, atol=0)
    doubles = [of.SupConLoss(temperature=temperature)(x.double(), y) for of in (ours, theirs)]
    torch.testing.assert_close(*doubles)
