"""Reducers of replaced losses: any of losses of anchors; of pairs from sums and counts."""

import pytest
import torch
from peer_classes import (
    BATCHES,
    DTYPES,
    PAIRS,
    REFS,
    ROWS,
    assert_close,
    miner_pair,
    ours,
    rows,
    step,
    theirs,
)
from pytorch_metric_learning import distances, reducers
from pytorch_metric_learning import miners as their_miners

from ms_kernels.compat.pytorch_metric_learning import losses, miners

Y = BATCHES["any"]
MEAN, SUM, ACTIVE = reducers.MeanReducer(), reducers.SumReducer(), reducers.AvgNonZeroReducer()
FEW = (MEAN, SUM, ACTIVE)
ANY = (
    *FEW,
    reducers.ThresholdReducer(low=0.1, high=2),
    reducers.PerAnchorReducer(),
    reducers.PerAnchorReducer(SUM),
    reducers.ClassWeightedReducer(torch.linspace(0.5, 2, 10)),
    reducers.MultipleReducers({"loss": SUM}),
)


def is_a_sum(reducer):
    return any(type(part) is reducers.SumReducer for part in reducer.modules())


def named(values):
    return pytest.mark.parametrize("reducer", values, ids=lambda r: type(r).__name__)


@named(ANY)
@pytest.mark.parametrize("name", ROWS)
def test_losses_of_anchors_go_to_any_reducer(name, reducer):
    loss = ours(name, reducer=reducer)
    their = theirs(loss)
    if isinstance(reducer, reducers.ClassWeightedReducer) and name in (
        "MultiSimilarityLoss",
        "CircleLoss",
        "GeneralizedLiftedStructureLoss",
    ):
        # Theirs weighs a column of losses by a row of weights, which is mean times mean.
        their.reducer = reducers.DoNothingReducer()
        each = their(rows(len(Y)), Y)["loss"]["losses"][:, 0]
        want = (each * reducer.weights[Y]).mean()
        for dtype in DTYPES:
            value, _ = step(loss, rows(len(Y)), Y, dtype=dtype)
            torch.testing.assert_close(value.double(), want.double(), rtol=1e-2, atol=0)
        return
    want = step(their, rows(len(Y)), Y)
    for dtype in DTYPES:
        got = step(loss, rows(len(Y)), Y, dtype=dtype)
        assert_close(got, want, dtype, is_a_sum(reducer))
    assert not loss.calls["fallback"]


SERVED = [(name, r) for name in PAIRS for r in (*FEW, reducers.PerAnchorReducer())]
# Theirs knows no triplets of anchors, and takes no column of losses, as lifted structure gives it.
SERVED = [(n, r) for n, r in SERVED if n in ("NTXentLoss", "ContrastiveLoss") or r in FEW]


@pytest.mark.parametrize("miner", [None, "multi_similarity"])
@pytest.mark.parametrize(("name", "reducer"), SERVED, ids=str)
def test_losses_of_pairs_are_reduced_from_sums_and_counts(name, reducer, miner):
    """Also where a miner's pairs are measured as the loss measures."""
    loss = ours(name, reducer=reducer, distance=distances.CosineSimilarity())
    if name == "ContrastiveLoss":
        loss.pos_margin, loss.neg_margin = 0.9, 0.1
    their = theirs(loss)
    if name == "ContrastiveLoss":
        their.pos_margin, their.neg_margin = 0.9, 0.1
    mine, judge = (None, None) if miner is None else miner_pair(miner)
    want = step(their, rows(len(Y)), Y, miner=judge)
    for dtype in DTYPES:
        got = step(loss, rows(len(Y)), Y, miner=mine, dtype=dtype)
        assert_close(got, want, dtype, is_a_sum(reducer))
        assert got[0] > 0
    assert not loss.calls["fallback"]
    if name != "LiftedStructureLoss":
        assert not loss.calls["lists"]


@named(FEW)
@pytest.mark.parametrize("margin", [0.0, 0.4])
@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_forms_of_the_triplet_loss(refs, smooth, margin, reducer):
    loss = ours("TripletMarginLoss", smooth_loss=smooth, margin=margin, reducer=reducer)
    their = theirs(loss)
    their.smooth_loss, their.margin = smooth, margin
    other = (rows(len(REFS), 1), REFS) if refs else (None, None)
    got = step(loss, rows(len(Y)), Y, *other)
    assert_close(got, step(their, rows(len(Y)), Y, *other), torch.float64)
    assert loss.calls == {"streamed" if smooth else "kernels": 1}


def test_equal_rows_of_two_classes():
    """A triplet on a margin of 0 costs nothing, and is not counted. (A hinge has two slopes there:
    theirs is 0.)"""
    x = rows(4).round().repeat(3, 1)
    y = torch.arange(12) // 3
    exact = distances.DotProductSimilarity(normalize_embeddings=False)
    loss = ours("TripletMarginLoss", margin=0.0, distance=exact)
    their = theirs(loss)
    their.margin = 0.0
    torch.testing.assert_close(loss(x, y), their(x, y), rtol=1e-12, atol=0)


@named(FEW)
@pytest.mark.parametrize("margins", [(0.5, 1.4), (1.2, 1.0)])
def test_margins_of_miner_and_loss(margins, reducer):
    """A pair counts that the miner keeps; it is active if the loss's hinge is, too."""
    loss = ours("ContrastiveLoss", reducer=reducer)
    their = theirs(loss)
    loss.pos_margin, loss.neg_margin = their.pos_margin, their.neg_margin = margins
    kept = {"pos_margin": 1.0, "neg_margin": 1.2}
    got = step(loss, rows(len(Y)), Y, miner=miners.PairMarginMiner(**kept))
    want = step(their, rows(len(Y)), Y, miner=their_miners.PairMarginMiner(**kept))
    assert_close(got, want, torch.float64)
    assert loss.calls == {"kernels": 1}


@pytest.mark.parametrize("miner", [None, "triplet_margin", tuple], ids=str)
def test_a_sum_that_half_does_not_hold(miner):
    """Of 512 rows, and whatever reaches the reducer: sums by kernels, or lists."""
    x, y = rows(512), torch.arange(512) // 4
    loss = ours("TripletMarginLoss", reducer=SUM)
    their = theirs(loss)
    lists = their_miners.TripletMarginMiner()(x, y)
    mine, judge = (None, None) if miner is None else (lambda *_: lists,) * 2
    if miner == "triplet_margin":
        mine, _ = miner_pair(miner)
    want = step(their, x, y, miner=judge)
    assert want[0] > torch.finfo(torch.float16).max
    got = step(loss, x, y, miner=mine, dtype=torch.float16)
    assert_close(got, want, torch.float16, summed=True)
    assert loss.calls == {"lists" if miner is tuple else "kernels": 1}


def test_half_holds_a_mean_of_sums_that_it_does_not():
    """The triplets of one anchor add up to more than 65,504; their mean is a hundredth of it."""
    raw = distances.LpDistance(normalize_embeddings=False)
    x, y = 256 * rows(64), torch.arange(64) // 16
    loss = ours("TripletMarginLoss", distance=raw, margin=600.0)
    their = theirs(loss)
    their.margin = 600.0
    got = step(loss, x, y, dtype=torch.float16)
    assert_close(got, step(their, x, y), torch.float16)
    alone = ours("TripletMarginLoss", distance=raw, margin=600.0, reducer=SUM)(x[:17], y[:17])
    assert alone > 65504


def test_each_kind_of_pair_has_a_reducer_of_its_own():
    both = reducers.MultipleReducers({"pos_loss": SUM, "neg_loss": MEAN})
    loss = ours("ContrastiveLoss", reducer=both)
    got = step(loss, rows(len(Y)), Y)
    assert_close(got, step(theirs(loss), rows(len(Y)), Y), torch.float64)


def test_losses_that_are_not_reduced():
    """One for each anchor, where theirs has a column of them; half stays half."""
    for name in ROWS:
        loss = ours(name, reducer=reducers.DoNothingReducer())
        got = loss(rows(len(Y)).half(), Y)["loss"]
        want = theirs(loss)(rows(len(Y)), Y)["loss"]
        assert got["losses"].dtype == torch.float16
        torch.testing.assert_close(
            got["losses"].double(), want["losses"].flatten(), rtol=1e-2, atol=1e-2
        )
        assert torch.equal(got["indices"], want["indices"])


@pytest.mark.parametrize(
    "reducer", [*FEW, reducers.ThresholdReducer(low=0)], ids=lambda r: type(r).__name__
)
@pytest.mark.parametrize(
    ("loss", "sweeps"),
    [("MultiSimilarityLoss", 1), ("SupConLoss", 1), ("CircleLoss", 1), ("ContrastiveLoss", 2)],
)
def test_a_sum_takes_one_sweep_with_its_gradient(monkeypatch, loss, sweeps, reducer):
    """Statistics first, for any reducer, would compute every similarity twice."""
    cpu = pytest.importorskip("ms_kernels._cpu")
    planned = []
    real = cpu.Call.plan
    monkeypatch.setattr(cpu.Call, "plan", lambda *given: planned.append(1) or real(*given))
    x, y = torch.randn(40, 8, requires_grad=True), torch.arange(40) // 4
    criterion = getattr(losses, loss)(reducer=reducer)
    miner = miners.MultiSimilarityMiner()
    criterion(x, y, miner(x, y) if loss == "MultiSimilarityLoss" else None).backward()
    # Means of positives and of negatives are gradients of two sums, whose numbers come with them.
    one = loss == "ContrastiveLoss" and type(reducer) is reducers.SumReducer
    assert len(planned) == (1 if one else sweeps) and criterion.calls == {"kernels": 1}


@pytest.mark.parametrize("miner", [None, "pair_margin"])
@pytest.mark.parametrize("batch", ["any", "one class", "no company", "one pair", "one row"])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_a_sum_of_hinges_of_both_kinds(batch, refs, miner):
    for reducer in (SUM, reducers.MultipleReducers({"pos_loss": SUM, "neg_loss": SUM})):
        loss, y = ours("ContrastiveLoss", reducer=reducer), BATCHES[batch]
        sides = (rows(len(REFS), 1), REFS) if refs else (None, None)
        mine, their = (None, None) if miner is None else miner_pair(miner)
        want = step(theirs(loss), rows(len(y)), y, *sides, miner=their)
        for dtype in DTYPES:
            got = step(loss, rows(len(y)), y, *sides, miner=mine, dtype=dtype)
            assert_close(got, want, dtype, summed=True)
        assert loss.calls == {"kernels": len(DTYPES)}


def test_weighed_sums_of_both_kinds_stay_apart():
    """By a subclass, which sees either sum."""

    class Weighed(reducers.MultipleReducers):
        def sub_loss_reduction(self, sub_losses, embeddings=None, labels=None):
            return sub_losses[0] + 3 * sub_losses[1]

    loss = ours("ContrastiveLoss")
    loss.reducer = Weighed({"pos_loss": SUM, "neg_loss": SUM})
    their = theirs(loss)
    assert_close(step(loss, rows(len(Y)), Y), step(their, rows(len(Y)), Y), torch.float64)


def test_a_threshold_of_0_is_the_mean_of_what_is_not_0():
    x = rows(len(Y))
    for name in ("TripletMarginLoss", "ContrastiveLoss", "NTXentLoss"):
        found = []
        for reducer in (reducers.ThresholdReducer(low=0), reducers.AvgNonZeroReducer()):
            criterion = getattr(losses, name)(reducer=reducer, strict=True)
            leaf = x.detach().clone().requires_grad_()
            loss = criterion(leaf, Y)
            found.append((loss.detach(), *torch.autograd.grad(loss, leaf)))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)) and found[0][0] > 0
