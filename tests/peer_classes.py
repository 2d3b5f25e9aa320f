"""Replaced classes beside those of pytorch-metric-learning: batches, and one judge for all.

The judge is the library's own class in float64, of the same numbers: half and float32 must be
within their own rounding of it, however the library itself computes in them.
"""

import copy

import torch
from pytorch_metric_learning import losses as their_losses
from pytorch_metric_learning import miners as their_miners

from ms_kernels.compat.pytorch_metric_learning import losses, miners

DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
# Of values; of gradients, whose largest entry is what they are measured by.
TOLERANCE = {
    torch.float64: 1e-9,
    torch.float32: 2e-5,
    torch.bfloat16: 2**-7,
    torch.float16: 2**-10,
}
ROWS = {
    "MultiSimilarityLoss": {"beta": 10},
    "SupConLoss": {},
    "CircleLoss": {"gamma": 10},
    "GeneralizedLiftedStructureLoss": {},
    "NCALoss": {},
}
PAIRS = {
    "NTXentLoss": {"temperature": 0.2},
    "ContrastiveLoss": {"pos_margin": 0.2},
    "LiftedStructureLoss": {},
    "TripletMarginLoss": {"margin": 0.2},
}
ALONE = {"NPairsLoss": {}}  # takes no references
LOSSES = {**ROWS, **PAIRS, **ALONE}
MINERS = {
    "multi_similarity": ("MultiSimilarityMiner", {"epsilon": 0.3}),
    "pair_margin": ("PairMarginMiner", {"pos_margin": 0.3, "neg_margin": 1.3}),
    "batch_hard": ("BatchHardMiner", {}),
    "triplet_margin": ("TripletMarginMiner", {}),
}
D = 6


def rows(n, seed=0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    # Numbers that half holds: then it is not they that are rounded.
    return (torch.randn(n, D, generator=generator) + shift).bfloat16().to(torch.float64)


# Of classes of equal size, of any size, one class, none with company, one positive pair, one row.
BATCHES = {
    "equal": torch.arange(24) % 6,
    "any": torch.tensor([0, 1, 1, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 4, 4, 4, 5, 6, 7]),
    "one class": torch.zeros(7, dtype=torch.int64),
    "no company": torch.arange(6),
    "one pair": torch.tensor([4, 9, 4]),
    "one row": torch.tensor([3]),
    "empty": torch.zeros(0, dtype=torch.int64),
}
REFS = torch.tensor([0, 0, 1, 2, 3, 3, 4, 8, 9, 9, 4])


def ours(name, **options):
    return getattr(losses, name)(**{**LOSSES[name], "strict": True, **options})


def theirs(loss):
    """The library's own of the same options."""
    name = type(loss).__name__
    their = getattr(their_losses, name)(**LOSSES[name])
    their.distance = copy.deepcopy(loss.distance)
    their.reducer = copy.deepcopy(loss.reducer)
    return their


def miner_pair(name):
    kind, options = MINERS[name]
    return getattr(miners, kind)(**options), getattr(their_miners, kind)(**options)


def step(loss, x, y, r=None, z=None, miner=None, dtype=torch.float64):
    """Value and gradients."""
    given = (side.detach() for side in (x, r) if side is not None)
    leaves = [side.to(dtype, copy=True).requires_grad_() for side in given]
    refs = leaves[1:] + [z] if r is not None else []
    pairs = None if miner is None else miner(leaves[0], y, *refs)
    value = loss(leaves[0], y, pairs, *refs)
    value.backward()
    # A loss of 0 need not reach the references.
    nothing = (torch.zeros_like(leaf) for leaf in leaves)
    grads = (leaf.grad for leaf in leaves)
    return value.detach(), [n if g is None else g for g, n in zip(grads, nothing, strict=True)]


def assert_close(got, want, dtype, summed=False):
    """summed: by a reducer whose results of half rows are of float32."""
    (value, grads), (their_value, their_grads) = got, want
    wide = torch.promote_types(dtype, torch.float32) if summed else dtype
    assert value.dtype == wide and value.shape == ()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(value.double(), their_value, rtol=tolerance, atol=1e-12)
    for dx, their_dx in zip(grads, their_grads, strict=True):
        assert dx.dtype == dtype
        worst = float(their_dx.abs().max()) if their_dx.numel() else 0.0
        atol = 4 * tolerance * worst + 1e-12
        torch.testing.assert_close(dx.double(), their_dx, rtol=0, atol=atol)
