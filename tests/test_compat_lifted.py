"""Lifted structure of both ends of a pair: by kernels where these know the ends, else streamed."""

import pytest
import torch
from peer_classes import (
    BATCHES,
    DTYPES,
    REFS,
    assert_close,
    miner_pair,
    ours,
    rows,
    step,
    theirs,
)
from pytorch_metric_learning import distances, reducers
from pytorch_metric_learning import losses as their_losses

from ms_kernels import options
from ms_kernels.checks import Pairs
from ms_kernels.compat.pytorch_metric_learning import losses
from ms_kernels.compat.pytorch_metric_learning.losses.lifted import holds_log_sums
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.pairs import Chosen
from ms_kernels.rules.mining import NO_MINING

DISTANCES = {
    "cosine": distances.CosineSimilarity(),
    "dot": distances.DotProductSimilarity(normalize_embeddings=False),
    "euclidean": distances.LpDistance(),
    "raw euclidean": distances.LpDistance(normalize_embeddings=False),
    "raw squared": distances.LpDistance(normalize_embeddings=False, power=2),
}
# Labels of anchors and of references, and how they go.
ENDS = {
    "by itself": (BATCHES["any"], None, "kernels"),
    "every anchor has positives": (torch.arange(9) % 3, torch.arange(12) % 3, "kernels"),
    "ends behind the last anchor": (torch.tensor([0, 0]), torch.tensor([1, 1, 0, 0]), "kernels"),
    "others have no positives": (BATCHES["any"], REFS, "kernels"),
    "an end has negatives alone": (torch.tensor([7, 0, 0, 1]), torch.arange(4) // 2, "streamed"),
    "ends have positives alone": (torch.tensor([0, 0, 1]), torch.tensor([0, 0]), "kernels"),
}


def exactly(got, want):
    torch.testing.assert_close(got[0], want[0], rtol=1e-10, atol=1e-12)
    for dx, their_dx in zip(got[1], want[1], strict=True):
        atol = 1e-10 * max(1, float(their_dx.abs().max()))
        torch.testing.assert_close(dx, their_dx, rtol=1e-10, atol=atol)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("ends", ENDS)
def test_ends(ends, distance):
    y, z, road = ENDS[ends]
    given = rows(len(y)), y, *((None, None) if z is None else (rows(len(z), 1), z))
    loss = ours("LiftedStructureLoss", distance=DISTANCES[distance])
    their = theirs(loss)
    # Wide margins, by which every hinge is open.
    loss.pos_margin = their.pos_margin = 20.0 if distance in ("cosine", "dot") else -20.0
    got = step(loss, *given)
    exactly(got, step(their, *given))
    road = "streamed" if distance not in ("cosine", "euclidean") else road
    assert loss.calls == {road: 1} and got[0] > 0 and got[1][0].any()


@pytest.mark.parametrize(("neg_margin", "pos_margin"), [(1.0, 0.0), (0.3, 0.2), (-2.0, 0.7)])
@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
def test_margins(distance, neg_margin, pos_margin):
    y = BATCHES["any"]
    loss = ours(
        "LiftedStructureLoss",
        distance=DISTANCES[distance],
        neg_margin=neg_margin,
        pos_margin=pos_margin,
    )
    their = theirs(loss)
    their.neg_margin, their.pos_margin = neg_margin, pos_margin
    exactly(step(loss, rows(len(y)), y), step(their, rows(len(y)), y))


def test_derivative():
    y = torch.tensor([0, 1, 1, 2, 2, 2, 3])
    loss = ours("LiftedStructureLoss")
    x = rows(len(y)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: loss(x, y), (x,))
    assert set(loss.calls) == {"kernels"}
    r = rows(12, 1).requires_grad_()
    y, z = torch.arange(9) % 3, torch.arange(12) % 3
    x = rows(9).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, r: loss(x, y, None, r, z), (x, r))
    assert set(loss.calls) == {"kernels"}


def test_raw_rows_of_any_length():
    """A mean positive of 1e8 would leave no digit of a hinge of 1."""
    x = torch.tensor([[1e4, 1.0], [1e4, 0.0], [0.0, 1.0], [0.0, 2.0]], dtype=torch.float64)
    y = torch.tensor([0, 0, 0, 1])
    loss = ours("LiftedStructureLoss", distance=DISTANCES["dot"])
    want, (exact,) = step(theirs(loss), x, y)
    value, (dx,) = step(loss, x, y, dtype=torch.float32)
    torch.testing.assert_close(value.double(), want, rtol=1e-5, atol=0)
    assert (dx.double() - exact).norm() <= 1e-5 * exact.norm()


def test_far_from_the_origin():
    y = BATCHES["any"]
    x = rows(len(y), shift=64.0)
    loss = ours("LiftedStructureLoss", distance=DISTANCES["raw euclidean"])
    want = step(theirs(loss), x, y)
    value, (dx,) = step(loss, x, y, dtype=torch.float32)
    torch.testing.assert_close(value.double(), want[0], rtol=1e-5, atol=0)
    assert (dx.double() - want[1][0]).norm() <= 1e-5 * want[1][0].norm()


def test_pairs_that_a_miner_lists_go_by_lists():
    y = BATCHES["any"]
    loss, (mine, their) = ours("LiftedStructureLoss"), miner_pair("multi_similarity")
    exactly(
        step(loss, rows(len(y)), y, miner=mine), step(theirs(loss), rows(len(y)), y, miner=their)
    )
    assert loss.calls == {"lists": 1}


def test_a_memory_of_past_rows():
    """A copy of a row in the memory is no pair of it. Another end is a row of the batch by its
    slot, whatever that row has."""
    company = [torch.arange(12) // 3] * 3
    alone = [torch.tensor([0, 0, 1, 2]), torch.tensor([5, 1, 0, 0]), torch.tensor([2, 5, 5, 7])]
    roads = set()
    for batches in (company, alone):
        inner = ours("LiftedStructureLoss")
        memory = losses.CrossBatchMemory(inner, 6, 48).double()
        peer = their_losses.CrossBatchMemory(theirs(inner), 6, 48).double()
        for seed, y in enumerate(batches):
            exactly(step(memory, rows(len(y), seed), y), step(peer, rows(len(y), seed), y))
        roads |= inner.calls.keys()
    assert roads == {"kernels", "streamed"}


# Labels of few classes, of anchors and of references: more of either, ends without anchors' number,
# anchors and ends with pairs of one kind alone.
FEW = {
    "by itself": (torch.arange(17) % 2, None),
    "more references": (torch.arange(17) % 3 % 2, torch.arange(23) % 2),
    "fewer references": (torch.arange(17) % 2, torch.arange(9) % 3),
    "one kind alone": (torch.tensor([0] * 9 + [1] * 5 + [2]), torch.tensor([0] * 4 + [1] * 4)),
}
LINEAR = (reducers.MeanReducer(), reducers.SumReducer(), reducers.AvgNonZeroReducer())


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("ends", FEW)
def test_more_positives_than_a_panel_are_streamed(ends, distance):
    """A few rows at a time, hinges open and closed."""
    options.panel_bytes = 2048
    y, z = FEW[ends]
    given = rows(len(y)), y, *((None, None) if z is None else (rows(len(z), 1), z))
    for reducer in LINEAR:
        for pos_margin in (0.0, 2.0, -20.0):
            loss = ours("LiftedStructureLoss", distance=DISTANCES[distance], reducer=reducer)
            their = theirs(loss)
            loss.pos_margin = their.pos_margin = pos_margin
            exactly(step(loss, *given), step(their, *given))
            assert loss.calls == {"streamed": 1}


def test_streamed_positives_in_every_dtype():
    options.panel_bytes = 2048
    y, z = FEW["more references"]
    given = rows(len(y)), y, rows(len(z), 1), z
    want = step(theirs(ours("LiftedStructureLoss")), *given)
    for dtype in DTYPES:
        loss = ours("LiftedStructureLoss")
        assert_close(step(loss, *given, dtype=dtype), want, dtype)
        assert loss.calls == {"streamed": 1}
    x, r = rows(len(y)).requires_grad_(), rows(len(z), 1)
    with torch.no_grad():
        torch.testing.assert_close(loss(x.detach(), y, None, r, z), want[0])
        assert not loss(x, y, None, r, z).requires_grad
    r.requires_grad_()
    (dr,) = torch.autograd.grad(loss(x.detach(), y, None, r, z), r)
    torch.testing.assert_close(dr, want[1][1])


def test_streamed_positives_of_a_memory():
    options.panel_bytes = 512
    inner = ours("LiftedStructureLoss")
    memory = losses.CrossBatchMemory(inner, 6, 20).double()
    peer = their_losses.CrossBatchMemory(theirs(inner), 6, 20).double()
    for seed in range(3):  # of which the last begins anew
        y = torch.arange(8) * (seed + 3) // 5 % 2
        exactly(step(memory, rows(8, seed), y), step(peer, rows(8, seed), y))
    assert inner.calls == {"streamed": 3}


def test_a_reducer_that_looks_at_single_pairs_gets_their_list():
    options.panel_bytes = 512
    y, _ = FEW["by itself"]
    loss = ours("LiftedStructureLoss", reducer=reducers.ThresholdReducer(low=0.5))
    exactly(step(loss, rows(len(y)), y), step(theirs(loss), rows(len(y)), y))
    assert loss.calls == {"kernels": 1}


@pytest.mark.parametrize(("device", "by_kernels"), [("cpu", True), ("meta", False)])
def test_distances_of_a_gpu_are_streamed(device, by_kernels):
    """Its kernels take them from products: what is added to a loss of theirs is of differences."""
    pairs = Pairs(torch.empty(4, 2, device=device), *[None] * 5)
    chosen = Chosen(pairs, NO_MINING, None)
    assert holds_log_sums(Measure(True, "euclidean"), chosen) is by_kernels
    assert holds_log_sums(Measure(True, None), chosen)
    assert not holds_log_sums(Measure(False, None), chosen)
