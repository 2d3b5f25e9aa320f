"""The triplet loss with mined triplets: fused where all that cost something are among them."""

import pytest
import torch
from peer_classes import BATCHES, assert_close, ours, rows, step, theirs
from pytorch_metric_learning import miners as library
from pytorch_metric_learning import reducers

from ms_kernels.compat.pytorch_metric_learning import miners

Y = BATCHES["any"]
REDUCERS = (reducers.MeanReducer(), reducers.SumReducer(), reducers.AvgNonZeroReducer())


def judged(loss, mine, their, x=None, y=Y):
    judge = theirs(loss)
    judge.smooth_loss, judge.margin, judge.swap = loss.smooth_loss, loss.margin, loss.swap
    x = rows(len(y)) if x is None else x
    got = step(loss, x, y, miner=mine)
    assert_close(got, step(judge, x, y, miner=their), torch.float64)
    assert got[0] > 0 and not loss.calls["fallback"]


@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("smooth", [False, True])
def test_the_hardest_of_each_anchor(smooth, reducer):
    loss = ours("TripletMarginLoss", smooth_loss=smooth, reducer=reducer)
    judged(loss, miners.BatchHardMiner(), library.BatchHardMiner())
    assert loss.calls == {"streamed" if smooth else "kernels": 1}


def test_hardest_pairs_that_tie():
    """Of equal rows theirs takes the first, ours a share of each: the value is the same."""
    x, y = rows(8).repeat(2, 1), (torch.arange(8) // 2).repeat(2)
    loss = ours("TripletMarginLoss")
    got, dx = step(loss, x, y, miner=miners.BatchHardMiner())
    want, their_dx = step(theirs(loss), x, y, miner=library.BatchHardMiner())
    torch.testing.assert_close(got, want, rtol=1e-9, atol=0)
    sums = [g[0].view(2, 8, -1).sum(0) for g in (dx, their_dx)]  # of rows that are equal
    torch.testing.assert_close(*sums, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("reducer", REDUCERS, ids=lambda r: type(r).__name__)
@pytest.mark.parametrize("kind", ["all", "hard", "semihard", "easy"])
@pytest.mark.parametrize("margin", [0.1, 0.4])
def test_triplets_within_a_margin(margin, kind, reducer):
    """Fused if none that costs something lies beyond the miner's margin."""
    given = {"margin": 0.2, "type_of_triplets": kind}
    loss = ours("TripletMarginLoss", margin=margin, reducer=reducer)
    if kind == "easy":
        loss.margin += 1  # else none costs anything
    judged(loss, miners.TripletMarginMiner(**given), library.TripletMarginMiner(**given))
    assert loss.calls == {"kernels" if kind == "all" and margin < 0.2 else "lists": 1}


@pytest.mark.parametrize("option", [{"swap": True}, {"smooth_loss": True}])
def test_forms_that_want_the_lists(option):
    loss = ours("TripletMarginLoss", **option)
    judged(loss, miners.TripletMarginMiner(), library.TripletMarginMiner())
    assert loss.calls == {"lists": 1}


def test_numbers_without_lists():
    for kind in ("all", "hard"):
        given = {"type_of_triplets": kind}
        mine, their = miners.TripletMarginMiner(**given), library.TripletMarginMiner(**given)
        found = mine(rows(len(Y)), Y)
        their(rows(len(Y)), Y)
        assert mine.num_triplets == their.num_triplets > 0
        assert (found._lists is None) == (kind == "all")
        assert len(found[0]) == mine.num_triplets and len(found) == 3
        assert ("all" if kind == "all" else "hard") in repr(found)


def test_sizes_that_are_recorded():
    found, x = [], rows(len(Y))
    mine = ours("TripletMarginLoss", margin=0.1)
    for loss, find in ((mine, miners), (theirs(mine), library)):
        loss.margin, loss.reducer.collect_stats = 0.1, True
        loss(x, Y, find.TripletMarginMiner()(x, Y))
        found.append((loss.reducer.losses_size, loss.reducer.num_past_filter))
    assert found[0] == found[1] and mine.calls == {"kernels": 1}
