"""Each replaced loss against pytorch-metric-learning's own: every dtype, batch, miner, distance."""

import pytest
import torch
from peer_classes import (
    ALONE,
    BATCHES,
    DTYPES,
    LOSSES,
    MINERS,
    REFS,
    assert_close,
    miner_pair,
    ours,
    rows,
    step,
    theirs,
)
from pytorch_metric_learning import distances

from ms_kernels.compat.pytorch_metric_learning import losses

DISTANCES = {
    "cosine": distances.CosineSimilarity(),
    "dot": distances.DotProductSimilarity(normalize_embeddings=False),
    "unit dot": distances.DotProductSimilarity(),
    "euclidean": distances.LpDistance(),
    "raw euclidean": distances.LpDistance(normalize_embeddings=False),
    "squared": distances.LpDistance(power=2),
    "raw squared": distances.LpDistance(normalize_embeddings=False, power=2),
}
# Where theirs has no number: of no anchor with a positive a mean of nothing is NaN.
NAN = [("NCALoss", "no company")]


def judged(loss, x, y, r=None, z=None, miners=(None, None), dtype=torch.float64):
    got = step(loss, x, y, r, z, miners[0], dtype)
    assert_close(got, step(theirs(loss), x, y, r, z, miners[1]), dtype)
    return got


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("name", LOSSES)
def test_a_batch_by_itself(name, batch):
    y = BATCHES[batch]
    x = rows(len(y))
    want = step(theirs(ours(name)), x, y)
    assert want[0].isnan() == ((name, batch) in NAN)
    for dtype in DTYPES:
        loss = ours(name)
        value, grads = step(loss, x, y, dtype=dtype)
        if (name, batch) in NAN:
            assert value == 0 and not grads[0].any()
            continue
        assert_close((value, grads), want, dtype)
        assert not loss.calls["fallback"] and not loss.calls["lists"]
        assert batch not in ("equal", "any") or (value > 0 and loss.calls.total() == 1)


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ALONE])
def test_references(name):
    y = BATCHES["any"]
    given = rows(len(y)), y, rows(len(REFS), 1), REFS
    want = step(theirs(ours(name)), *given)
    for dtype in DTYPES:
        loss = ours(name)
        got = step(loss, *given, dtype=dtype)
        assert_close(got, want, dtype)
        assert set(loss.calls) <= {"kernels", "streamed"} and loss.calls.total() == 1
        assert got[0] > 0


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("name", LOSSES)
def test_distances(name, distance, refs):
    if name == "CircleLoss" and distance != "cosine":
        with pytest.raises(AssertionError, match="CosineSimilarity"):
            ours(name, distance=DISTANCES[distance])
        return
    if refs and name in ALONE:
        with pytest.raises(ValueError, match="ref_emb"):
            ours(name)(rows(2), REFS[:2], None, rows(2, 1), REFS[:2])
        return
    y = BATCHES["equal"]
    other = (rows(len(REFS), 1), REFS) if refs else (None, None)
    loss = ours(name, distance=DISTANCES[distance])
    value, _ = judged(loss, rows(len(y)), y, *other)
    assert value > 0 and not loss.calls["lists"]


@pytest.mark.parametrize("miner", MINERS)
@pytest.mark.parametrize("batch", ["equal", "any", "one class", "no company", "one pair"])
@pytest.mark.parametrize("name", LOSSES)
def test_miners(name, batch, miner):
    if (name, batch) in NAN:
        return  # a miner weighs anchors there, and none has a positive
    y = BATCHES[batch]
    loss = ours(name)
    judged(loss, rows(len(y)), y, miners=miner_pair(miner))
    assert not loss.calls["fallback"]


FUSED = [
    ("MultiSimilarityLoss", "multi_similarity"),
    ("SupConLoss", "multi_similarity"),
    ("CircleLoss", "multi_similarity"),
    ("NTXentLoss", "multi_similarity"),
    ("ContrastiveLoss", "pair_margin"),
    ("TripletMarginLoss", "pair_margin"),
    ("TripletMarginLoss", "batch_hard"),
    ("TripletMarginLoss", "triplet_margin"),
]


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize(("name", "miner"), FUSED)
def test_a_miner_that_measures_alike_is_fused(name, miner, refs):
    """No list is made: the tuple has none after the loss, and counts of the loss's own pass."""
    y = BATCHES["any"]
    other = (rows(len(REFS), 1), REFS) if refs else (None, None)
    _, their = miner_pair(miner)
    want = step(theirs(ours(name)), rows(len(y)), y, *other, their)
    for dtype in DTYPES:
        loss, (mine, _) = ours(name), miner_pair(miner)
        got = step(loss, rows(len(y)), y, *other, mine, dtype)
        assert_close(got, want, dtype)
        assert got[0] > 0 and loss.calls == {"kernels": 1}
        assert mine._last is not None and mine._last._lists is None
        for number in ("num_pos_pairs", "num_neg_pairs", "num_triplets"):
            assert getattr(mine, number) == getattr(their, number, 0)
        assert mine._last._lists is None


@pytest.mark.parametrize("name", [name for name in LOSSES if name not in ALONE])
def test_the_labels_themselves_as_those_of_references(name):
    """There pairs i = i are left out by the labels, in NCA by the rows."""
    y = BATCHES["any"]
    judged(ours(name), rows(len(y)), y, rows(len(y), 1), y)
    x = rows(len(y)).requires_grad_()
    for labels in (y, y.clone()):
        loss = ours(name)
        mine, their = loss(x, y, None, x, labels), theirs(loss)(x, y, None, x, labels)
        torch.testing.assert_close(mine, their, rtol=1e-9, atol=0)
        (dx,), (their_dx,) = (torch.autograd.grad(value, x) for value in (mine, their))
        torch.testing.assert_close(dx, their_dx, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("miner", [None, *MINERS])
@pytest.mark.parametrize("name", [name for name in LOSSES if name not in (*ALONE, "NCALoss")])
def test_references_without_labels(name, miner):
    """They are of the batch's labels, and pairs i = i are none."""
    y = BATCHES["any"]
    for other in (True, False):
        if other and miner == "multi_similarity":
            continue  # pairs i = i of other rows are of both kinds there: test_compat_miners
        loss, (mine, their) = ours(name), (None, None) if miner is None else miner_pair(miner)
        found = []
        for find, judge in ((mine, loss), (their, theirs(loss))):
            x = rows(len(y)).requires_grad_()
            r = rows(len(y), 1).requires_grad_() if other else x
            value = judge(x, y, None if find is None else find(x, y, r), r)
            found.append((value.detach(), torch.autograd.grad(value, [x, r] if other else [x])))
        assert_close(*found, torch.float64)
        assert found[0][0] > 0 and "fallback" not in loss.calls


def test_references_without_labels_of_another_number():
    """Theirs looks at as many as the batch has."""
    y = BATCHES["any"]
    x, r = rows(len(y)), rows(len(y) + 3, 1)
    loss = losses.SupConLoss()
    with pytest.warns(UserWarning, match="ref_emb of 23 rows without ref_labels, for a batch of"):
        value = loss(x, y, None, r)
    assert torch.equal(value, theirs(ours("SupConLoss"))(x, y, None, r))
    for name, error in (("NCALoss", "ref_labels: expected"), ("SupConLoss", "of 23 rows")):
        with pytest.raises(ValueError, match=error):
            ours(name)(x, y, None, r)


@pytest.mark.parametrize("distance", ["raw euclidean", "raw squared"])
@pytest.mark.parametrize("name", ["ContrastiveLoss", "TripletMarginLoss", "NCALoss"])
def test_far_from_the_origin(name, distance):
    """In float32 too: distances are of differences there, not of products."""
    y = BATCHES["any"]
    judged(
        ours(name, distance=DISTANCES[distance]),
        rows(len(y), shift=64.0),
        y,
        dtype=torch.float32,
    )


def test_small_batches():
    """One pair of each kind costs 0 there; exact_small_batches=False gives it its loss."""
    x, y = rows(2), torch.tensor([0, 1])
    refs = rows(1, 1), torch.tensor([0])
    for name in ("MultiSimilarityLoss", "NTXentLoss", "ContrastiveLoss", "LiftedStructureLoss"):
        args = x[:1], y[:1], rows(2, 1), torch.tensor([0, 1])
        value, (dx, dr) = judged(ours(name), *args)
        assert value == 0 and not dx.any() and not dr.any()
        value, (dx, _) = step(ours(name, exact_small_batches=False), *args)
        assert value > 0 and dx.any()
    assert step(ours("TripletMarginLoss"), x, y, *refs)[0] == 0
