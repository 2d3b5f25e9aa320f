"""Weights of anchors count by their shares, be they as great or as small as float32 holds."""

import pytest
import torch

from ms_kernels import MultiSimilarity, NoMining, NTXent, PairLoss, SigLIP
from ms_kernels.backends import dispatch

BACKENDS = [name for name in ("cpu", "panels") if name in dispatch.built("cpu")]


@pytest.mark.parametrize("reduction", ["mean", "mean_valid"])
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(1e30, 1), (1e36, 1), (1e-36, 65536), (1e-30, 1)], ids=str)
def test_gradients(backend, reduction, size):
    scale, dloss = size
    x, y, weight = torch.randn(12, 6), torch.arange(12) // 3, (torch.rand(12) + 0.5) * scale
    for rule in (SigLIP(100.0, -10.0), NTXent(0.01), NTXent(0.1), MultiSimilarity()):
        found = []
        for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
            leaf = x.to(dtype, copy=True).requires_grad_()
            loss = PairLoss(rule, NoMining(), backend=name, reduction=reduction)
            value = loss(leaf, y, sample_weight=weight.to(dtype))
            (value * dloss).backward()
            found.append((value.detach().double(), leaf.grad.double()))
        for got, want in zip(*found, strict=True):
            assert (got - want).abs().max() <= 1e-5 * want.abs().max()


def test_statistics_that_no_kernel_has_are_refused_at_once():
    learns = MultiSimilarity(alpha=torch.nn.Parameter(torch.tensor(2.0)))
    with pytest.raises(ValueError, match="keep_statistics: expected options that are numbers"):
        PairLoss(learns, backend="panels", keep_statistics=True)
    temperature = NTXent(torch.nn.Parameter(torch.tensor(0.2)))
    loss = PairLoss(temperature, backend="panels", keep_statistics=True)
    loss(torch.randn(6, 3), torch.arange(6) // 2)
    assert loss.statistics.active.all()
