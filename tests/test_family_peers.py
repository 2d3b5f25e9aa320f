"""Each member of the family against pytorch-metric-learning's own class: values and gradients.

Each row of PEERS says in `how` what makes the two equal. Batches have classes of equal size, each
with company, as anchors that lack a kind of pair are treated differently: its generalised lifted
structure takes an empty log-sum-exp for 0, its NCA averages over anchors with positives alone, its
histogram leaves out negatives between two samples without positives (and fails at s = 1).

Equal under no setting:
  NTXentLoss of classes of different size: it averages over positive pairs, ours over anchors.
  ContrastiveLoss, TripletMarginLoss with the default reducer: over active pairs or triplets.
  LiftedStructureLoss: a squared hinge for each pair, over the negatives of both its ends; ours is
    the generalised form alone.
  NCALoss with a miner: the miner weighs anchors there, and here it chooses pairs.
  NTXentLoss with a miner: as with classes of different size.
  HistogramLoss with a miner: a pair that both its anchors keep counts once there, twice here.
  Binomial deviance and BinLifted: it has none.
"""

import warnings
from typing import NamedTuple

import pytest
import torch

from ms_kernels import Histogram, mined_pairs, pair_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

peer_losses = pytest.importorskip("pytorch_metric_learning.losses")
peer_miners = pytest.importorskip("pytorch_metric_learning.miners")
from pytorch_metric_learning.distances import (  # noqa: E402
    CosineSimilarity,
    DotProductSimilarity,
)
from pytorch_metric_learning.reducers import MeanReducer, SumReducer  # noqa: E402

COSINE = CosineSimilarity()
MINERS = {
    "none": (mine.NoMining(), None),
    "hardest": (mine.HardestMining(), peer_miners.BatchHardMiner(distance=COSINE)),
    "margins": (
        mine.ThresholdMining(0.6, 0.1),
        peer_miners.PairMarginMiner(pos_margin=0.6, neg_margin=0.1, distance=COSINE),
    ),
    "multi_similarity": (
        mine.MultiSimilarityMining(0.2),
        peer_miners.MultiSimilarityMiner(epsilon=0.2),
    ),
}
ALONE = ("none",)
PAIRS = tuple(MINERS)


class Peer(NamedTuple):
    ours: weigh.Weighting
    theirs: torch.nn.Module
    how: str
    reduction: str = "mean"
    miners: tuple[str, ...] = PAIRS
    refs: bool = True
    rtol: float = 1e-9


PEERS = {
    "contrastive": Peer(
        weigh.Contrastive(0.8, 0.2),
        peer_losses.ContrastiveLoss(0.8, 0.2, distance=COSINE, reducer=SumReducer()),
        "cosine margins; sums over pairs on both sides",
        reduction="sum",
    ),
    "ntxent": Peer(
        weigh.NTXent(0.2),
        peer_losses.NTXentLoss(temperature=0.2),
        "its mean over positive pairs is ours over anchors if all have equally many positives",
        miners=ALONE,
    ),
    "supcon": Peer(
        weigh.SupCon(0.2),
        peer_losses.SupConLoss(temperature=0.2, reducer=MeanReducer()),
        "mean over all anchors, not over those that cost more than 0",
    ),
    "nca": Peer(
        weigh.NCA(0.25),
        peer_losses.NCALoss(softmax_scale=2),
        "temperature = 1 / (2 softmax_scale): its squared distance of unit rows is 2 - 2 s",
        miners=ALONE,
    ),
    "circle": Peer(
        weigh.Circle(0.4, 20.0),
        peer_losses.CircleLoss(m=0.4, gamma=20, reducer=MeanReducer()),
        "mean over all anchors, not over those that cost more than 0",
    ),
    "triplet": Peer(
        weigh.Triplet(0.3),
        peer_losses.TripletMarginLoss(margin=0.3, distance=COSINE, reducer=SumReducer()),
        "cosine margin; sums over triplets on both sides",
        reduction="sum",
    ),
    "lifted_structure": Peer(
        weigh.LiftedStructure(0.7),
        peer_losses.GeneralizedLiftedStructureLoss(pos_margin=1.0, neg_margin=0.3, distance=COSINE),
        "margin = pos_margin - neg_margin of similarities; each anchor keeps both kinds or none",
        miners=("none", "hardest", "multi_similarity"),
    ),
    "multi_similarity": Peer(
        weigh.MultiSimilarity(2.0, 10.0, 0.4),
        peer_losses.MultiSimilarityLoss(alpha=2, beta=10, base=0.4),
        "mean over anchors",
    ),
    "histogram": Peer(
        Histogram(20),
        peer_losses.HistogramLoss(n_bins=20),
        "bins = n_bins, steps between n_bins + 1 nodes; its nodes are float32",
        miners=ALONE,
        refs=False,
        rtol=1e-6,
    ),
}
CASES = [
    pytest.param(peer, miner, m, id=f"{name}-{miner}-{'refs' if m else 'self'}")
    for name, peer in PEERS.items()
    for miner in peer.miners
    for m in ((None, 20) if peer.refs else (None,))
]


def batch(n=24, m=None, classes=4, d=5, seed=7):
    generator = torch.Generator().manual_seed(seed)
    new = {"generator": generator, "dtype": torch.float64}
    centres = torch.randn(classes, d, **new)
    y = torch.arange(n) % classes
    x = (centres[y] + torch.randn(n, d, **new)).requires_grad_()
    if m is None:
        return x, y, None, None
    z = torch.arange(m) % classes
    return x, y, (centres[z] + torch.randn(m, d, **new)).requires_grad_(), z


def assert_same(ours, theirs, leaves, rtol=1e-9):
    torch.testing.assert_close(ours, theirs, rtol=rtol, atol=0)
    assert ours > 0
    got, want = torch.autograd.grad(ours, leaves), torch.autograd.grad(theirs, leaves)
    for dx, peer_dx in zip(got, want, strict=True):
        worst = float(peer_dx.abs().max())
        torch.testing.assert_close(dx, peer_dx, rtol=0, atol=rtol * worst)


@pytest.mark.parametrize(("peer", "miner", "m"), CASES)
def test_values_and_gradients_are_the_peers(peer, miner, m):
    x, y, r, z = batch(m=m)
    mining, miner = MINERS[miner]
    pairs = None if miner is None else miner(x, y, r, z)
    ours = pair_loss(x, y, r, z, weighting=peer.ours, mining=mining, reduction=peer.reduction)
    with warnings.catch_warnings():
        # Its histogram indexes with a list, of which torch warns.
        warnings.filterwarnings("ignore", "Using a non-tuple sequence")
        theirs = peer.theirs(x, y, pairs, ref_emb=r, ref_labels=z)
    assert_same(ours, theirs, [x] if r is None else [x, r], peer.rtol)


@pytest.mark.parametrize("normalize", [False, True], ids=["raw", "unit"])
def test_n_pairs(normalize):
    """It takes the first pair of each class, the second of each as refs: those given here."""
    x, y, _, _ = batch(n=12, classes=6)
    distance = DotProductSimilarity(normalize_embeddings=normalize)
    theirs = peer_losses.NPairsLoss(distance=distance)(x, y)
    ours = pair_loss(*(x[:6], y[:6], x[6:], y[6:]), weighting=weigh.NPair(), normalize=normalize)
    assert_same(ours, theirs, [x])


def kept(mining, x, y, r, z):
    """Pairs (anchor, candidate) of both kinds, as sets."""
    unit = torch.nn.functional.normalize
    own = r is None
    r, z = (x, y) if own else (r, z)
    positive = y[:, None] == z
    negative = ~positive
    if own:
        positive = positive & ~torch.eye(len(x), dtype=torch.bool)
    masks = mining.keep(unit(x.detach()) @ unit(r.detach()).T, positive, negative)
    return [{tuple(pair) for pair in mask.nonzero().tolist()} for mask in masks]


def listed(pairs):
    a, p, *rest = pairs
    b, n = rest if len(rest) == 2 else (a, *rest)
    return [set(zip(u.tolist(), v.tolist(), strict=True)) for u, v in ((a, p), (b, n))]


@pytest.mark.parametrize("m", [None, 20], ids=["self", "refs"])
@pytest.mark.parametrize("name", PAIRS[1:])
def test_miners_keep_the_same_pairs(name, m):
    """HardestMining where nothing ties and each anchor has both kinds; the others always."""
    tensors = batch(m=m)
    mining, miner = MINERS[name]
    found = kept(mining, *tensors)
    assert found == listed(miner(*tensors)) and all(found)
    if name == "multi_similarity":
        assert found == listed(mined_pairs(*tensors, epsilon=0.2))


def test_semi_hard_negatives_are_the_same_of_one_positive():
    """Of several positives that miner lists each with its own negatives, while SemiHardMining wants
    negatives beyond all of them; it keeps positives without such a negative too."""
    tensors = batch(n=16, classes=8)
    miner = peer_miners.TripletMarginMiner(0.3, "semihard", distance=COSINE)
    positives, negatives = kept(mine.SemiHardMining(0.3), *tensors)
    their_positives, their_negatives = listed(miner(*tensors))
    assert negatives == their_negatives and negatives and their_positives <= positives
