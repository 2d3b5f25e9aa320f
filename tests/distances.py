"""Rules whose options suit distances, batches, and a step of any backend."""

import torch

from ms_kernels import pair_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

DISTANCES = ("euclidean", "squared_euclidean")
RULES = [
    weigh.MultiSimilarity(2.0, 5.0, -1.0),
    weigh.Contrastive(-0.1, -1.0),
    weigh.BinomialDeviance(2.0, 5.0, -1.0),
    weigh.BinLifted(2.0, 5.0, -1.0),
    weigh.LiftedStructure(0.5),
    weigh.NTXent(0.3),
    weigh.SupCon(0.5),
    weigh.NCA(1.0),
    weigh.Circle(0.25, 4.0),
    weigh.Triplet(0.2),
    weigh.DecoupledContrastive(0.5),
    weigh.NPair(),
    weigh.SigLIP(5.0, 4.0),
]
MININGS = [
    mine.NoMining(),
    mine.MultiSimilarityMining(0.2),
    mine.HardestMining(),
    mine.SemiHardMining(),
    mine.ThresholdMining(-0.5, -1.5),
    mine.TopKMining(3),
]


def batch(n, m, d, dtype=torch.float64, classes=7):
    generator = torch.Generator().manual_seed(n + d)
    x, r = (torch.randn(k, d, generator=generator, dtype=dtype) for k in (n, m or 0))
    y, z = (torch.randint(classes, (k,), generator=generator) for k in (n, m or 0))
    return (x, y, r, z) if m else (x, y)


def step(tensors, backend, dtype=torch.float64, **rules):
    """Loss and gradients, of losses that are worth 1 to 2 each where they are not reduced."""
    leaves = [t.to(dtype, copy=True).requires_grad_() for t in tensors[::2]]
    given = [t for pair in zip(leaves, tensors[1::2], strict=True) for t in pair]
    loss = pair_loss(*given, backend=backend, **rules)
    worth = torch.linspace(1, 2, loss.numel(), dtype=loss.dtype).reshape(loss.shape)
    return [loss.detach(), *torch.autograd.grad((loss * worth).sum(), leaves)]
