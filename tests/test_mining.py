"""mined_pairs against the dense masks, panel by panel."""

import pytest
import torch
from cases import SPECS, make_batch

import ms_kernels
from ms_kernels import mined_pairs, options


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
