"""The log-sum-exp of one pair is its exponent, to the bit; and no loss of distances is below 0."""

import every_backend
import pytest
import torch

import ms_kernels
from ms_kernels import HardestMining, MultiSimilarityMining, NoMining, pair_loss
from ms_kernels.rules import weighting as weigh


@pytest.fixture(params=every_backend.NAMES)
def backend(request, monkeypatch):
    return every_backend.served(monkeypatch, request.param)


def apart(least, greatest):
    """Anchors and candidates of 24 classes; S of an anchor is 0 but for its positive, margin above
    its one negative that is not 0: a hinge that lies exactly at 0, since all are whole parts."""
    similar = torch.linspace(least, greatest, 24).mul(64).round().div(64)
    x, y = torch.eye(24), torch.arange(24)
    return x, y, torch.cat([torch.diag(similar + 0.25), torch.diag(similar)]), torch.arange(48)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("least", [0.1, 0.5])
def test_a_hinge_exactly_at_zero_is_active(backend, least, reduction):
    x, y, r, z = apart(least, 8.0)
    x, r = x.requires_grad_(), r.requires_grad_()
    rules = {"weighting": weigh.LiftedStructure(0.25), "mining": HardestMining()}
    loss = pair_loss(x, y, r, z, **rules, normalize=False, reduction=reduction, backend=backend)
    loss.sum().backward()
    assert not loss.any()
    torch.testing.assert_close(r.grad, torch.cat([-torch.eye(24), torch.eye(24)]))


@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_one_positive_and_one_negative_weigh_alike(backend, reduction):
    """Of decoupled contrastive 1 / temperature each, also where exp(S / temperature) overflows."""
    x, y, r, z = apart(0.5, 1.5)
    r.requires_grad_()
    rules = {"weighting": weigh.DecoupledContrastive(0.01), "mining": HardestMining()}
    loss = pair_loss(x, y, r, z, **rules, normalize=False, reduction=reduction, backend=backend)
    loss.sum().backward()
    torch.testing.assert_close(r.grad, 100 * torch.cat([-torch.eye(24), torch.eye(24)]))


@pytest.mark.parametrize("margin", [0.0, 0.25])
def test_unit_rows(backend, margin):
    """Sums of bounded exponentials are added as they are in Triton."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 4, generator=generator), torch.arange(60) // 3
    shared = {"reduction": "none", "backend": backend}
    rules = {"weighting": weigh.LiftedStructure(margin), "mining": HardestMining()}
    got = pair_loss(x, y, **rules, **shared)
    stats = ms_kernels.row_statistics(x, y, backend=backend)
    want = (margin - stats.hardest_positive) + stats.hardest_negative
    assert torch.equal(got, want.clamp(min=0)) and got.any()


@pytest.mark.parametrize("temperature", [0.07, 0.5])
@pytest.mark.parametrize("sides", ["self", "refs"])
def test_one_positive_alone_costs_nothing(backend, sides, temperature):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2 if sides == "self" else 60, 5, generator=generator)
    y = torch.zeros(len(x), dtype=torch.int64)
    refs = () if sides == "self" else (torch.randn(1, 5, generator=generator), y[:1])
    rules = {"weighting": weigh.SupCon(temperature), "reduction": "none", "backend": backend}
    loss = pair_loss(x, y, *refs, **rules)
    assert torch.equal(loss, torch.zeros_like(loss))


@pytest.mark.parametrize("kind", ["positive", "negative"])
def test_statistics_of_one_pair(backend, kind):
    """alpha and beta are powers of two: scaling rounds nothing."""
    generator = torch.Generator().manual_seed(2)
    x, r = (torch.randn(n, 5, generator=generator) for n in (60, 1))
    y, z = torch.zeros(60, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    z += kind == "negative"
    shared = {"alpha": 2.0, "beta": 32.0, "base": 0.0, "epsilon": None, "backend": backend}
    stats = ms_kernels.row_statistics(x, y, r, z, **shared)
    if kind == "positive":
        assert torch.equal(stats.pos_lse, -2 * stats.hardest_positive)
    else:
        assert torch.equal(stats.neg_lse, 32 * stats.hardest_negative)


RULES = [
    *[weigh.MultiSimilarity(60.0, 400.0), weigh.Contrastive(), weigh.BinomialDeviance()],
    *[weigh.BinLifted(), weigh.LiftedStructure(0.0), weigh.Triplet(0.0), weigh.NPair()],
    *[weigh.NTXent(), weigh.SupCon(), weigh.SupCon(0.01), weigh.NCA(0.01), weigh.Circle()],
]


@pytest.mark.parametrize("name", ["reference", "panels", "cpu"])
@pytest.mark.parametrize("weighting", RULES, ids=repr)
def test_no_loss_is_below_zero(name, weighting, monkeypatch):
    backend = every_backend.served(monkeypatch, name)
    generator = torch.Generator().manual_seed(3)
    for classes, spread in ((1, 1.0), (30, 1.0), (30, 1e-3), (4, 1e-3)):
        x = torch.randn(1, 6, generator=generator) + spread * torch.randn(
            60, 6, generator=generator
        )
        for mining in (NoMining(), MultiSimilarityMining(), HardestMining()):
            rules = {"weighting": weighting, "mining": mining, "backend": backend}
            loss = pair_loss(x, torch.arange(60) % classes, reduction="none", **rules)
            assert (loss >= 0).all()
