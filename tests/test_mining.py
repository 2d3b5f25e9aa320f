"""mined_pairs against the dense masks, panel by panel."""

import pytest
import torch
from cases import SPECS, make_batch

import ms_kernels
from ms_kernels import (
    HardestMining,
    Mining,
    MultiSimilarityMining,
    NoMining,
    SemiHardMining,
    ThresholdMining,
    mined_pairs,
    options,
    reference,
)


def dense_pairs(batch, spec):
    x, y, r, z = batch
    self_mode = r is None
    r, z = (x, y) if self_mode else (r, z)
    unit = torch.nn.functional.normalize if spec.normalize else lambda v, dim: v
    s = unit(x, dim=1) @ unit(r, dim=1).T
    positive = y[:, None] == z
    negative = ~positive
    if self_mode:
        positive.fill_diagonal_(False)
    if spec.max_positive_similarity is not None:
        positive &= s < spec.max_positive_similarity
    if spec.epsilon is not None:
        least = s.masked_fill(~positive, torch.inf).amin(1, keepdim=True)
        most = s.masked_fill(~negative, -torch.inf).amax(1, keepdim=True)
        positive, negative = positive & (s < most + 0.1), negative & (s > least - 0.1)
    return positive.nonzero(), negative.nonzero()


@pytest.mark.parametrize("panel_bytes", [1, 4000, 16 << 20])
@pytest.mark.parametrize("name", ["default", "unmined", "capped", "raw"])
@pytest.mark.parametrize("shape", [(97, None, 64), (60, 500, 17), (5, None, 3)], ids=str)
def test_pairs_are_those_of_the_dense_masks(shape, name, panel_bytes, monkeypatch):
    monkeypatch.setattr(options, "_panel_bytes", panel_bytes)
    spec = SPECS[name]
    batch = make_batch(*shape, spec, torch.float64)
    anchor, positive, also_anchor, negative = mined_pairs(
        *batch,
        epsilon=spec.epsilon,
        max_positive_similarity=spec.max_positive_similarity,
        normalize=spec.normalize,
    )
    want_positive, want_negative = dense_pairs(batch, spec)
    assert torch.equal(torch.stack([anchor, positive], 1), want_positive)
    assert torch.equal(torch.stack([also_anchor, negative], 1), want_negative)


def test_ids_and_empty_batches():
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    anchor, positive, _, negative = mined_pairs(x, y, ids=y, epsilon=None)
    assert not len(anchor) and not len(positive) and not len(negative)
    for part in mined_pairs(torch.zeros(0, 4), torch.zeros(0, dtype=torch.long)):
        assert part.shape == (0,) and part.dtype == torch.int64


def test_kept_counts_agree_with_the_pairs(backend):
    x, y, r, z = make_batch(130, 1100, 70, SPECS["default"], torch.float32)
    stats = ms_kernels.row_statistics(x, y, r, z, backend=backend)
    anchor, _, also_anchor, _ = mined_pairs(x, y, r, z)
    assert torch.equal(torch.bincount(anchor, minlength=130), stats.pos_kept)
    assert torch.equal(torch.bincount(also_anchor, minlength=130), stats.neg_kept)


RULES = [
    *[NoMining(), MultiSimilarityMining(0.05), HardestMining(), SemiHardMining(0.3)],
    ThresholdMining(0.6, 0.2),
]


class BelowMean(Mining):
    """A rule of one's own."""

    def keep(self, similarity, positive, negative):
        return positive & (similarity < similarity.mean(1, keepdim=True)), negative & False


@pytest.mark.parametrize("panel_bytes", [1, 4000, 16 << 20])
@pytest.mark.parametrize("cap", [None, 0.6], ids=["", "capped"])
@pytest.mark.parametrize("shape", [(97, None, 64), (60, 500, 17), (5, None, 3)], ids=str)
@pytest.mark.parametrize("rule", [*RULES, BelowMean()], ids=lambda r: type(r).__name__)
def test_rules_keep_what_they_keep_of_the_dense_matrix(rule, shape, cap, panel_bytes, monkeypatch):
    monkeypatch.setattr(options, "_panel_bytes", panel_bytes)
    batch = make_batch(*shape, SPECS["default"], torch.float64)
    dense = reference.labelled_similarities(
        *batch, ids=None, ref_ids=None, max_positive_similarity=cap, normalize=True
    )
    found = mined_pairs(*batch, mining=rule, max_positive_similarity=cap)
    if not isinstance(rule, HardestMining):
        wanted = [mask.nonzero() for mask in rule.keep(*dense)]
    else:  # a panel's product may differ in the last bit: which pair is hardest, not its value
        least = dense[0].masked_fill(~dense[1], torch.inf)
        most = dense[0].masked_fill(~dense[2], -torch.inf)
        rows = torch.arange(len(least))
        wanted = [torch.stack([rows, best], 1) for best in (least.argmin(1), most.argmax(1))]
        has = dense[1].any(1), dense[2].any(1)
        wanted = [pairs[some] for pairs, some in zip(wanted, has, strict=True)]
    for got, want in zip((found[:2], found[2:]), wanted, strict=True):
        assert torch.equal(torch.stack(got, 1), want)


@pytest.mark.parametrize("epsilon", [None, 0.2, -0.3])
def test_epsilon_is_a_mining_rule(epsilon):
    x, y, r, z = make_batch(60, 500, 17, SPECS["default"], torch.float32)
    rule = NoMining() if epsilon is None else MultiSimilarityMining(epsilon)
    ours = mined_pairs(x, y, r, z, epsilon=epsilon)
    for got, want in zip(mined_pairs(x, y, r, z, mining=rule), ours, strict=True):
        assert torch.equal(got, want)


def test_mining_errors():
    x, y = torch.randn(6, 4), torch.zeros(6, dtype=torch.long)
    for epsilon in (None, 0.2):
        with pytest.raises(ValueError, match=f"epsilon: .*mining was given, got {epsilon}; use"):
            mined_pairs(x, y, mining=HardestMining(), epsilon=epsilon)
    with pytest.raises(TypeError, match=r"mining: .*got its class; use HardestMining\(\)"):
        mined_pairs(x, y, mining=HardestMining)
    with pytest.raises(TypeError, match="mining: expected a Mining rule, such as .*; got 0.1"):
        mined_pairs(x, y, mining=0.1)
    mined_pairs(x, y, mining=HardestMining(), epsilon=0.1)


def test_autocast_does_not_touch_mining():
    x, y = make_batch(97, None, 64, SPECS["default"], torch.float32)[:2]
    want = mined_pairs(x, y, mining=SemiHardMining())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = mined_pairs(x, y, mining=SemiHardMining())
    assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))
