"""Tuples of miners that are not ours, or that measure otherwise: lists, in blocks, as they count
there. With labels and without; with duplicates, which matter to losses of pairs alone."""

import pytest
import torch
from peer_classes import (
    ALONE,
    BATCHES,
    DTYPES,
    LOSSES,
    REFS,
    assert_close,
    ours,
    rows,
    step,
    theirs,
)
from pytorch_metric_learning import distances, reducers

from ms_kernels import options
from ms_kernels.compat.pytorch_metric_learning import miners

Y = BATCHES["any"]
NO_LABELS = [name for name in LOSSES if name not in (*ALONE, "NCALoss")]


def drawn(m, four, seed=2):
    """Random lists, some pairs of them twice; of either kind, but none of both."""
    generator = torch.Generator().manual_seed(seed)
    n = len(Y)
    pairs = torch.randint(n * m, (60,), generator=generator)
    near, far = pairs[pairs % 2 == 0], pairs[pairs % 2 == 1]
    near, far = torch.cat([near, near[:5]]), torch.cat([far, far[:7]])
    if four:
        return near // m, near % m, far // m, far % m
    anchors = torch.randint(n, (40,), generator=generator)
    near = torch.randint(0, m // 2, (40,), generator=generator)
    return anchors, near, torch.randint(m // 2, m, (40,), generator=generator)


def given(lists):
    return lambda *rows: lists


@pytest.mark.parametrize("four", [True, False], ids=["pairs", "triplets"])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("name", NO_LABELS)
def test_lists_without_labels(name, refs, four):
    x = rows(len(Y))
    r, z = (rows(len(REFS), 1), REFS) if refs else (None, None)
    lists = drawn(len(REFS) if refs else len(Y), four)
    want = step(theirs(ours(name)), x, None, r, None, given(lists))
    for dtype in DTYPES:
        loss = ours(name)
        got = step(loss, x, None, r, None, given(lists), dtype)
        assert_close(got, want, dtype)
        assert got[0] > 0 and loss.calls == {"lists": 1}
        labelled = step(ours(name), x, Y, r, z, given(lists), dtype)
        torch.testing.assert_close(labelled[0], got[0], rtol=0, atol=0)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in NO_LABELS])
def test_a_tuple_that_chooses_or_weighs_anchors(name):
    lists = drawn(len(Y), True)
    if name == "NPairsLoss":  # of the labels' own pairs
        lists = tuple(miners.MultiSimilarityMiner(epsilon=0.5)(rows(len(Y)), Y))
    loss = ours(name)
    got = step(loss, rows(len(Y)), Y, miner=given(lists))
    assert_close(got, step(theirs(loss), rows(len(Y)), Y, miner=given(lists)), torch.float64)
    with pytest.raises(ValueError, match="labels"):
        ours(name)(rows(len(Y)), None, lists)


@pytest.mark.parametrize("lists", [(0, 0), (1, 0), (0, 1), (1, 1), (2, 0), (0, 2), (2, 1)])
@pytest.mark.parametrize("name", NO_LABELS)
def test_few_pairs(name, lists):
    """At most one of each kind costs 0; of one kind alone each loss as it does there."""
    many = drawn(len(Y), True)
    few = tuple(index[:n] for index, n in zip(many, (lists[0],) * 2 + (lists[1],) * 2, strict=True))
    loss = ours(name)
    got = step(loss, rows(len(Y)), Y, miner=given(few))
    assert_close(got, step(theirs(loss), rows(len(Y)), Y, miner=given(few)), torch.float64)


def test_a_pair_of_both_kinds_is_refused():
    both = torch.tensor([0, 1]), torch.tensor([2, 3]), torch.tensor([0, 4]), torch.tensor([2, 5])
    with pytest.raises(AssertionError, match="listed as both"):
        ours("MultiSimilarityLoss")(rows(8), None, both)
    assert ours("NTXentLoss")(rows(8), None, both) > 0  # a loss of pairs takes it


@pytest.mark.parametrize("name", NO_LABELS)
def test_mining_by_another_measure(name):
    """Mined by cosine, the loss of distances: what was mined holds."""
    if name == "CircleLoss":
        return
    loss = ours(name, distance=distances.LpDistance(normalize_embeddings=False))
    x = rows(len(Y))
    mine = miners.MultiSimilarityMiner(epsilon=0.3)
    lists = tuple(mine(x, Y))
    got = step(loss, x, Y, miner=mine)
    assert_close(got, step(theirs(loss), x, Y, miner=given(lists)), torch.float64)
    assert loss.calls == {"lists": 1}


@pytest.mark.parametrize(
    "reducer", [reducers.ThresholdReducer(low=0.5), reducers.ClassWeightedReducer(torch.rand(9))]
)
@pytest.mark.parametrize("name", ["NTXentLoss", "ContrastiveLoss", "TripletMarginLoss"])
def test_listed_losses_go_to_any_reducer(name, reducer):
    lists = drawn(len(Y), name != "TripletMarginLoss")
    loss = ours(name, reducer=reducer)
    got = step(loss, rows(len(Y)), Y, miner=given(lists))
    assert_close(got, step(theirs(loss), rows(len(Y)), Y, miner=given(lists)), torch.float64)
    assert got[0] > 0


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("swap", [False, True])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_forms_of_listed_triplets(refs, swap, smooth):
    r, z = (rows(len(Y), 1), Y.clone()) if refs else (None, None)
    loss = ours("TripletMarginLoss", swap=swap, smooth_loss=smooth)
    their = theirs(loss)
    their.swap, their.smooth_loss = swap, smooth
    miner = given(drawn(len(Y), False))
    got = step(loss, rows(len(Y)), Y, r, z, miner)
    assert_close(got, step(their, rows(len(Y)), Y, r, z, miner), torch.float64)


def test_triplets_that_are_drawn():
    loss = ours("TripletMarginLoss", triplets_per_anchor=3)
    their = theirs(loss)
    their.triplets_per_anchor = 3
    for either in (loss, their):
        torch.manual_seed(5)
        either.found = step(either, rows(len(Y)), Y)
    assert_close(loss.found, their.found, torch.float64)
    assert loss.calls == {"lists": 1}


def test_blocks_do_not_change_a_loss():
    want = step(ours("NTXentLoss"), rows(len(Y)), Y, miner=given(drawn(len(Y), True)))
    options.panel_bytes = 1
    got = step(ours("NTXentLoss"), rows(len(Y)), Y, miner=given(drawn(len(Y), True)))
    assert_close(got, want, torch.float64)
