"""Every option of every rule, as one that learns, and how a backend is held to dense PyTorch."""

import torch

from ms_kernels import (
    MultiSimilarityMining,
    NoMining,
    SemiHardMining,
    ThresholdMining,
    pair_loss,
)
from ms_kernels.rules import weighting as rules

OF_SCALE = [rules.NTXent, rules.NPair, rules.SupCon, rules.DecoupledContrastive, rules.NCA]
OPTIONS = [
    (rules.MultiSimilarity, {"alpha": 2.0, "beta": 5.0, "base": 0.3}),
    (rules.BinomialDeviance, {"alpha": 2.0, "beta": 5.0, "base": 0.3}),
    (rules.BinLifted, {"alpha": 2.0, "beta": 5.0, "base": 0.3}),
    (rules.Contrastive, {"positive_margin": 0.9, "negative_margin": 0.1}),
    (rules.LiftedStructure, {"margin": 0.7}),
    (rules.Triplet, {"margin": 0.2}),
    (rules.Circle, {"m": 0.3, "gamma": 4.0}),
    (rules.SigLIP, {"scale": 4.0, "bias": -1.0}),
    *((rule, {"temperature": 0.3}) for rule in OF_SCALE),
]


MININGS = [NoMining(), MultiSimilarityMining(), SemiHardMining(0.4), ThresholdMining(0.8, -0.5)]


def batch(n=11, d=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return x, torch.arange(n) % 3


def scalar(value):
    return torch.tensor(value, dtype=torch.float64, requires_grad=True)


def compare(rule, options, backend, refs, n=30, **shared):
    """Loss and gradients of rows and options by a backend and by dense PyTorch."""
    x, y = batch(n)
    found = []
    for name in (backend, "reference"):
        leaves = [x.clone().requires_grad_()]
        leaves += [side.clone().requires_grad_() for side in refs[:1]]
        values = {name: scalar(value) for name, value in options.items()}
        given = leaves[0], y, *leaves[1:], *refs[1:]
        loss = pair_loss(*given, weighting=rule(**values), backend=name, **shared)
        worth = torch.linspace(0.5, 1.5, loss.numel(), dtype=torch.float64)
        total = (loss * worth.reshape(loss.shape)).sum()
        found.append((loss.detach(), *torch.autograd.grad(total, (*leaves, *values.values()))))
        plain = pair_loss(x, y, *refs, weighting=rule(**options), **shared)
        torch.testing.assert_close(loss.detach(), plain)
    for got, want in zip(*found, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)
