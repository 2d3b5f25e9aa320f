"""Candidates that are anchors too: one sweep gives what two of them add up to."""

import pytest
import torch
from family import MININGS, WEIGHTINGS, name_of

from ms_kernels.api.functional import pair_loss
from ms_kernels.checks import Pairs
from ms_kernels.engine import ops
from ms_kernels.engine.autograd import fused_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec, unpack

cpu = pytest.importorskip("ms_kernels._cpu")
INF = float("inf")


def batch(n, m, d=13, dtype=torch.float64, classes=9):
    generator = torch.Generator().manual_seed(n + m)
    x, r = (torch.randn(k, d, generator=generator, dtype=dtype) for k in (n, m))
    y, z = (torch.randint(classes, (k,), generator=generator) for k in (n, m))
    return [x.requires_grad_(), y, None, r.requires_grad_(), z, None]


def whole(tensors, spec, reduction="mean", backend="cpu"):
    x, _, _, r, _, _ = tensors
    loss = fused_loss(Pairs(*tensors), spec, reduction, backend)
    return [loss, *torch.autograd.grad(loss, (x, r))]


def halves(tensors, spec, reduction="mean"):
    x, y, ids, r, z, ref_ids = tensors
    options = {"weighting": spec.weighting, "mining": spec.mining, "normalize": spec.normalize}
    options |= {"max_positive_similarity": spec.max_positive_similarity, "reduction": "sum"}
    loss = pair_loss(x, y, r, z, ids=ids, ref_ids=ref_ids, **options)
    loss = loss + pair_loss(r, z, x, y, ids=ref_ids, ref_ids=ids, **options)
    loss = loss / (len(x) + len(r)) if reduction == "mean" else loss
    return [loss, *torch.autograd.grad(loss, (x, r))]


def close(got, want, rtol=1e-10):
    for a, b in zip(got, want, strict=True):
        scale = b.detach().abs().max().clamp(min=1)
        torch.testing.assert_close(a / scale, b / scale, rtol=0, atol=rtol, equal_nan=True)


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_every_rule(weighting, mining):
    for sizes in ((97, 131), (260, 50), (1, 40)):
        spec = PairSpec(weighting, mining, two_sided=True)
        assert unpack(spec.pack()) == spec
        tensors = batch(*sizes)
        close(whole(tensors, spec), halves(tensors, spec))
    close(whole(tensors, spec, "sum", "panels"), halves(tensors, spec, "sum"))


@pytest.mark.parametrize("sizes", [(1100, 400), (400, 2100)], ids=str)
def test_several_blocks(sizes):
    """Super-blocks of either side, ids, raw rows, a cap."""
    tensors = batch(*sizes, classes=40)
    tensors[2], tensors[5] = (torch.arange(k) % 300 for k in sizes)
    spec = PairSpec(
        weigh.NTXent(0.4),
        mine.MultiSimilarityMining(0.5),
        normalize=False,
        max_positive_similarity=4.0,
        two_sided=True,
    )
    close(whole(tensors, spec), halves(tensors, spec))
    close(whole(tensors, spec, "sum"), halves(tensors, spec, "sum"))


def test_one_sweep_and_not_two(monkeypatch):
    asked = []
    real = cpu.Call.plan
    monkeypatch.setattr(cpu.Call, "plan", lambda *a: asked.append(1) or real(*a))
    whole(batch(30, 20), PairSpec(weigh.NTXent(), mine.NoMining(), two_sided=True))
    assert len(asked) == 1


@pytest.mark.parametrize("bad", [float("nan"), INF])
@pytest.mark.parametrize("side", [0, 3])
def test_rows_that_are_not_finite(side, bad):
    tensors = batch(60, 50)
    with torch.no_grad():
        tensors[side][7, 2] = bad
    spec = PairSpec(weigh.NTXent(), mine.NoMining(), two_sided=True)
    loss, dx, dr = whole(tensors, spec)
    assert loss.isnan() and dx.isnan().all() and dr.isnan().all()


def test_products_that_overflow():
    tensors = batch(60, 50, dtype=torch.float32)
    with torch.no_grad():
        tensors[0][3], tensors[3][4] = 3e30, 3e30
    spec = PairSpec(weigh.Contrastive(), mine.NoMining(), normalize=False, two_sided=True)
    loss, dx, dr = whole(tensors, spec)
    assert loss.isnan() and dx.isnan().all() and dr.isnan().all()


def test_the_same_bits_for_any_threads():
    tensors = batch(700, 900, 40, torch.float32, classes=300)
    spec = PairSpec(weigh.NTXent(0.1), mine.NoMining(), two_sided=True)
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(whole(tensors, spec))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_what_cannot_be():
    x, y, _, r, z, _ = batch(5, 6)
    packed = PairSpec(weigh.NTXent(), mine.NoMining(), two_sided=True).pack()
    with pytest.raises(ValueError, match="two_sided: expected False but for a reduced loss"):
        ops.row_statistics(x.detach(), y, None, r.detach(), z, None, packed, "cpu", None)
    with pytest.raises(ValueError, match="two_sided: expected candidates, got None"):
        fused_loss(Pairs(x, y, None, None, None, None), unpack(packed), "mean", "cpu")
    sides = Pairs(x, y, None, r, z, None)
    for backend in ("cpu", "panels"):
        with pytest.raises(ValueError, match="reduction: expected 'mean' or 'sum' of two sides"):
            fused_loss(sides, unpack(packed), "mean_valid", backend)
    with pytest.raises(TypeError, match="two_sided: expected True or False, got 1"):
        PairSpec(two_sided=1)
