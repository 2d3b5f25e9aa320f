"""The option `distance` means the same in every function that takes it."""

import warnings

import pytest
import torch

import ms_kernels
from ms_kernels import pair_loss, reference
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

DISTANCES = ("euclidean", "squared_euclidean")
MS = weigh.MultiSimilarity(2.0, 5.0, -1.0)


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(40, 8, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.arange(40) // 4


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_module_and_the_ms_loss(batch, distance):
    options = {"alpha": 2.0, "beta": 5.0, "base": -1.0, "distance": distance}
    want = reference.multi_similarity_loss(*batch, **options)
    torch.testing.assert_close(ms_kernels.MultiSimilarityLoss(**options)(*batch), want)
    module = ms_kernels.PairLoss(MS, mine.MultiSimilarityMining(), distance=distance)
    assert module(*batch) == ms_kernels.multi_similarity_loss(*batch, **options)
    assert f"distance={distance!r}" in repr(module)


@pytest.mark.parametrize("distance", DISTANCES)
def test_statistics_pairs_and_weights(batch, distance):
    x, y = batch
    unit = torch.nn.functional.normalize(x.detach())
    similarity = reference.similarities(unit, unit, distance)
    rules = {"weighting": MS, "mining": mine.MultiSimilarityMining()}
    loss, stats = pair_loss(x, y, **rules, distance=distance, return_statistics=True)
    other = y[:, None] != y
    hardest = similarity.masked_fill(~other, -torch.inf).amax(1)
    torch.testing.assert_close(stats.hardest_negative, hardest)
    again = ms_kernels.row_statistics(x, y, **rules, distance=distance)
    assert all(torch.equal(a, b) for a, b in zip(stats, again, strict=True))
    pairs = ms_kernels.mined_pairs(x, y, distance=distance)
    assert len(pairs[0]) == stats.pos_kept.sum() and len(pairs[2]) == stats.neg_kept.sum()
    module = ms_kernels.PairLoss(**rules, distance=distance)
    weights = ms_kernels.pair_weights(module, x, y)
    torch.testing.assert_close(weights.similarity, similarity)
    assert torch.equal(weights.negative.nonzero(), torch.stack(pairs[2:], 1))


@pytest.mark.parametrize("distance", DISTANCES)
def test_a_loss_of_ones_own(batch, distance):
    x, y = batch

    def row_loss(similarity, positive, negative):
        pulled = (-0.1 - similarity).clamp(min=0) * positive
        return (pulled + (similarity + 1).clamp(min=0) * negative).sum(1)

    got = ms_kernels.streamed_loss(row_loss, x, y, distance=distance)
    want = pair_loss(x, y, weighting=weigh.Contrastive(-0.1, -1.0), distance=distance)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(loss, x)[0] for loss in (got, want)))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
def test_options_that_learn(batch, distance, normalize):
    x, y = batch
    grads = []
    for backend in ("auto", "reference"):
        t = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
        shared = {"distance": distance, "normalize": normalize, "backend": backend}
        loss = pair_loss(x, y, weighting=weigh.NTXent(t), **shared)
        grads.append(torch.autograd.grad(loss, (x, t)))
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
def test_a_memory(batch, distance, normalize):
    x, y = batch
    loss = ms_kernels.ContrastiveLoss(-0.1, -1.0, distance=distance, normalize=normalize)
    memory = ms_kernels.CrossBatchMemory(loss, 8, 64, dtype=torch.float64, batch_weight=0.0)
    memory(x, y)
    ids = torch.arange(40)
    want = loss(x[:10], y[:10], x.detach(), y, ids=40 + ids[:10], ref_ids=ids)
    own = loss(x[:10], y[:10], x[:10].detach(), y[:10], ids=ids[:10], ref_ids=ids[:10])
    torch.testing.assert_close(memory(x[:10], y[:10]), want + own)


@pytest.mark.parametrize("distance", DISTANCES)
def test_in_a_compiled_graph(batch, distance):
    x, y = batch
    options = {"weighting": MS, "mining": mine.MultiSimilarityMining(), "distance": distance}
    want = pair_loss(x, y, **options)
    got = torch.compile(lambda x: pair_loss(x, y, **options), fullgraph=True)(x)
    assert torch.equal(got, want)
    assert torch.equal(*(torch.autograd.grad(loss, x)[0] for loss in (got, want)))


def test_what_cannot_be(batch):
    with pytest.raises(ValueError, match="distance: expected one of None, 'euclidean', 'squared_"):
        ms_kernels.PairLoss(MS, distance="manhattan")
    with pytest.raises(ValueError, match=r"distance: .*, got PairwiseDistance\(\); None .*compat"):
        pair_loss(*batch, weighting=MS, distance=torch.nn.PairwiseDistance())
    with pytest.raises(ValueError, match="got 'cosine'; None compares .* their cosine"):
        ms_kernels.TripletLoss(distance="cosine")
    with pytest.raises(ValueError, match="distance: expected None with Histogram"):
        ms_kernels.HistogramLoss(distance="euclidean")


def test_a_margin_that_no_distance_reaches_is_warned_of():
    for loss, name in (
        (ms_kernels.ContrastiveLoss, "negative_margin"),
        (ms_kernels.BinomialDevianceLoss, "base"),
        (ms_kernels.MultiSimilarityLoss, "base"),
    ):
        with pytest.warns(UserWarning, match=f"{loss.__name__}: .* such as {name}=-1"):
            loss(distance="euclidean")
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            loss(distance="euclidean", **{name: -1.0})
            loss()
