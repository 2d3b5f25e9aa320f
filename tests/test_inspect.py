"""pair_weights against the formulas of the docstrings and against gradients of the dense loss."""

from dataclasses import dataclass

import pytest
import torch
from family import MININGS, WEIGHTINGS, by_formula, few, name_of
from torch.nn.functional import normalize

import ms_kernels
from ms_kernels import MultiSimilarityLoss, PairLoss, options, pair_loss, pair_weights, reference
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

PANELS = [1, 16 * 8 * 14 * 4, 16 << 20]


@pytest.mark.parametrize("m", [None, 9], ids=["self", "refs"])
@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_weights_are_those_of_the_formulas(weighting, mining, m, monkeypatch):
    x, y, *refs = few(m=m)
    dense = reference.labelled_similarities(
        *(x, y, *(refs or (None, None))),
        ids=None,
        ref_ids=None,
        max_positive_similarity=None,
        normalize=True,
    )
    for panel_bytes in PANELS:
        monkeypatch.setattr(options, "_panel_bytes", panel_bytes)
        found = pair_weights(PairLoss(weighting, mining), x, y, *refs)
        torch.testing.assert_close(found.similarity, dense[0])
        kept = mining.keep(found.similarity, *dense[1:])
        assert torch.equal(found.positive, kept[0]) and torch.equal(found.negative, kept[1])
        want = torch.zeros_like(found.similarity)
        for i, s in enumerate(found.similarity):
            both = found.positive[i], found.negative[i]
            parts = by_formula(weighting, *(s[mask] for mask in both))
            for mask, part in zip(both, parts, strict=True):
                want[i, mask] = part
        torch.testing.assert_close(found.derivative, want, rtol=1e-9, atol=1e-12)
        assert torch.equal(found.weight, found.derivative.abs())


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_weights_give_the_gradient_of_the_dense_loss(weighting, mining):
    """With fixed candidates dl_i / dx_i = sum_j (dl_i / dS_ij) r_j."""
    x, y, r, z = few(n=9, m=14)
    x, r = 0.7 * normalize(x), normalize(r)
    loss = PairLoss(weighting, mining, normalize=False)
    x.requires_grad_()
    rules = {"weighting": weighting, "mining": mining, "backend": "reference"}
    pair_loss(x, y, r, z, **rules, normalize=False, reduction="sum").backward()
    found = pair_weights(loss, x, y, r, z)
    assert not found.derivative.requires_grad
    torch.testing.assert_close(found.derivative @ r, x.grad)


def test_the_fused_loss_has_the_weights_of_its_rules(backend):
    x, y, r, z = few(n=40, m=60)
    x.requires_grad_()
    loss = MultiSimilarityLoss(3.0, 20.0, 0.4, epsilon=0.2, reduction="sum", backend=backend)
    loss(x, y, r, z).backward()
    found = pair_weights(loss, x, y, r, z)
    dx = found.derivative @ normalize(r)
    norm, unit = x.detach().norm(dim=1, keepdim=True), normalize(x.detach())
    torch.testing.assert_close((dx - (dx * unit).sum(1, keepdim=True) * unit) / norm, x.grad)
    rules = PairLoss(weigh.MultiSimilarity(3.0, 20.0, 0.4), mine.MultiSimilarityMining(0.2))
    for got, want in zip(found, pair_weights(rules, x, y, r, z), strict=True):
        assert torch.equal(got, want)
    every = pair_weights(MultiSimilarityLoss(3.0, 20.0, 0.4, epsilon=None), x, y, r, z)
    rule = pair_weights(weigh.MultiSimilarity(3.0, 20.0, 0.4), x, y, r, z)
    assert torch.equal(every.derivative, rule.derivative)


def test_a_rule_of_your_own_and_members():
    @dataclass(frozen=True)
    class Cubic(weigh.Weighting):
        scale: float = 2.0

        def row_loss(self, similarity, positive, negative):
            return self.scale * torch.where(negative, similarity**3, 0).sum(1)

    x, y = few()
    found = pair_weights(Cubic(3.0), x, y)
    want = torch.where(found.negative, 9 * found.similarity**2, 0)
    torch.testing.assert_close(found.derivative, want)
    member = pair_weights(ms_kernels.NTXentLoss(0.3), x, y)
    assert torch.equal(member.derivative, pair_weights(weigh.NTXent(0.3), x, y).derivative)

    class Free(weigh.Weighting):
        def row_loss(self, similarity, positive, negative):
            return similarity.new_ones(len(similarity))

    assert pair_weights(Free(), x, y).weight.eq(0).all()

    class Summed(weigh.Weighting):
        def row_loss(self, similarity, positive, negative):
            return similarity.sum()

    with pytest.raises(ValueError, match=r"row_loss: expected .* for each row .*\(14,\)"):
        pair_weights(Summed(), x, y)


@pytest.mark.parametrize(
    "anchors", [[3, 0, 13], (5,), [], torch.tensor([2, 2], dtype=torch.int32), range(4, 9)], ids=str
)
@pytest.mark.parametrize("m", [None, 9], ids=["self", "refs"])
def test_chosen_anchors_are_rows_of_all(anchors, m):
    tensors = few(m=m)
    loss = PairLoss(weigh.NCA(), mine.SemiHardMining(0.5), max_positive_similarity=0.8)
    rows = torch.tensor([int(i) for i in anchors], dtype=torch.int64)
    every = pair_weights(loss, *tensors)
    for got, whole in zip(pair_weights(loss, *tensors, anchors=anchors), every, strict=True):
        torch.testing.assert_close(got, whole[rows], rtol=1e-12, atol=1e-12)
    shared = torch.arange(14) % 4
    refs = {} if m is None else {"ref_ids": torch.arange(9)}
    found = pair_weights(loss, *tensors, anchors=anchors, ids=shared, **refs)
    same = shared[rows, None] == refs.get("ref_ids", shared)[None, :]
    assert not (same & (found.positive | found.negative)).any()


def test_no_full_matrix_for_few_anchors(monkeypatch):
    """4 anchors of 60,000 would be 14 GB of similarities dense."""
    x, y = torch.randn(60_000, 4), torch.arange(60_000) // 3
    found = pair_weights(weigh.Triplet(), x, y, anchors=[7, 59_999, 3, 4])
    assert found.weight.shape == (4, 60_000)


def test_dtypes_modes_and_what_is_not_finite():
    x, y = few()
    want = pair_weights(weigh.NTXent(0.5), x, y)
    half = pair_weights(weigh.NTXent(0.5), x.bfloat16(), y)
    assert half.derivative.dtype == torch.float32 and want.derivative.dtype == torch.float64
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16):
        found = pair_weights(weigh.NTXent(0.5), x.float() * 1, y)
    torch.testing.assert_close(found.derivative.double(), want.derivative, rtol=1e-4, atol=1e-5)
    x[3, 0] = torch.inf
    found = pair_weights(weigh.Contrastive(), x, y, x[:3], y[:3], anchors=[2, 3])
    assert found.weight[0].isfinite().all() and found.weight[1].isnan().all()
    for labels in ([], [0], [0, 0], [0, 1]):
        y = torch.tensor(labels, dtype=torch.int64)
        for rule in WEIGHTINGS:
            found = pair_weights(PairLoss(rule, MININGS[1]), torch.randn(len(y), 3), y)
            assert found.weight.shape == (len(y), len(y)) and not found.weight.any()


@pytest.mark.parametrize(
    ("loss", "anchors", "error", "message"),
    [
        (weigh.NCA, None, TypeError, r"loss: expected a rule, got its class; use NCA\(\)"),
        (ms_kernels.HistogramLoss(), None, TypeError, "a loss for each anchor, got HistogramLoss"),
        (torch.nn.ReLU(), None, TypeError, r"loss: expected a PairLoss.*got ReLU\(\)"),
        (weigh.NCA(), [14], ValueError, "anchors: .* from 0 to 13, got 14"),
        (weigh.NCA(), [2, -1], ValueError, "anchors: .* from 0 to 13, got -1"),
        (weigh.NCA(), [[1]], ValueError, r"anchors: .*\(A,\), got shape \(1, 1\)"),
        (weigh.NCA(), 3, ValueError, r"anchors: .*\(A,\), got shape \(\)"),
        (weigh.NCA(), [0.5], TypeError, "anchors: .*, got torch.float32"),
        (weigh.NCA(), ["a"], TypeError, r"anchors: .*, got \['a'\]"),
        (weigh.NCA(), torch.ones(14) > 0, TypeError, r"got a mask; use mask.nonzero\(\)\[:, 0\]"),
    ],
)
def test_errors_name_got_and_wanted(loss, anchors, error, message):
    with pytest.raises(error, match=message):
        pair_weights(loss, *few(), anchors=anchors)
    with pytest.raises(ValueError, match=r"labels: expected shape"):
        pair_weights(weigh.NCA(), torch.zeros(3, 2), torch.zeros(2, dtype=torch.long))
