"""What training scripts hang on a loss: reducers, regularizers, records, wrappers, fall-backs."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from peer_classes import (
    ALONE,
    BATCHES,
    DTYPES,
    LOSSES,
    assert_close,
    miner_pair,
    ours,
    rows,
    step,
    theirs,
)
from pytorch_metric_learning import distances, reducers, regularizers
from pytorch_metric_learning import losses as library

from ms_kernels.compat.pytorch_metric_learning import losses, miners

Y = BATCHES["any"]


@pytest.mark.parametrize("name", LOSSES)
def test_a_regularizer(name):
    def options():
        return {"embedding_regularizer": regularizers.LpRegularizer(), "embedding_reg_weight": 0.3}

    loss = ours(name, **options())
    their = getattr(library, name)(**LOSSES[name], **options())
    assert loss.sub_loss_names() == their.sub_loss_names()
    want = step(their, rows(len(Y)), Y)
    for dtype in DTYPES:
        assert_close(step(loss, rows(len(Y)), Y, dtype=dtype), want, dtype)
    assert not loss.calls["fallback"]


@pytest.mark.parametrize("name", LOSSES)
def test_records(name):
    """Names, options, norms of the distance, numbers of losses of each reducer."""

    kept = type(getattr(library, name)().distance)(collect_stats=True)
    if name == "NCALoss":
        kept = distances.LpDistance(power=2, collect_stats=True)
    loss = ours(name, collect_stats=True, distance=copy.deepcopy(kept))
    their = getattr(library, name)(**LOSSES[name], collect_stats=True, distance=copy.deepcopy(kept))
    parts = [(loss, their), (loss.distance, their.distance)]
    for either in (loss, their):
        for part in either.reducer.modules():
            part.collect_stats = True
        either(rows(len(Y)), Y)
    assert getattr(loss, "_record_these", None) == getattr(their, "_record_these", None)
    inner = zip(loss.reducer.modules(), their.reducer.modules(), strict=True)
    for mine, judge in [*parts, *inner]:
        for record in ("_record_these", "_record_these_stats"):
            for stat in getattr(judge, record, []):
                assert getattr(mine, stat) == pytest.approx(getattr(judge, stat)), stat
        for stat in ("losses_size", "num_past_filter", "num_above_low", "num_pairs"):
            assert getattr(mine, stat, None) == getattr(judge, stat, None), (mine, stat)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("name", [n for n in LOSSES if n not in ALONE])
def test_self_supervised(name, symmetric):
    loss = ours(name)
    views = [rows(8, seed) for seed in (0, 1)]
    views[1] += 2 * views[0]
    found = []
    for kind, inner in ((losses, loss), (library, theirs(loss))):
        leaves = [view.clone().requires_grad_() for view in views]
        value = kind.SelfSupervisedLoss(inner, symmetric=symmetric)(*leaves)
        value.backward()
        found.append((value.detach(), [leaf.grad for leaf in leaves]))
    assert_close(*found, torch.float64)
    assert not loss.calls["fallback"] and not loss.calls["lists"]


def test_multiple_losses_with_miners():
    def made(kind, mine, names):
        inner = {name: mine(name) for name in names}
        return kind.MultipleLosses(inner, weights={name: 0.5 for name in names})

    names = ["MultiSimilarityLoss", "NTXentLoss", "ContrastiveLoss"]
    loss = made(losses, ours, names)
    their = made(library, lambda name: theirs(ours(name)), names)
    mine, judge = miner_pair("multi_similarity")
    loss.miners = torch.nn.ModuleDict({"MultiSimilarityLoss": mine})
    their.miners = torch.nn.ModuleDict({"MultiSimilarityLoss": judge})
    assert_close(step(loss, rows(len(Y)), Y), step(their, rows(len(Y)), Y), torch.float64)
    assert all(inner.calls == {"kernels": 1} for inner in loss.losses.values())


OPTIONS = {
    "distance=SNRDistance": ("ContrastiveLoss", {"distance": distances.SNRDistance()}),
    r"distance=LpDistance\(p=1": ("TripletMarginLoss", {"distance": distances.LpDistance(p=1)}),
    "reducer=ThresholdReducer": (
        "NTXentLoss",
        {"reducer": reducers.ThresholdReducer(low=0.1)},
    ),
    "reducer=DoNothingReducer": ("ContrastiveLoss", {"reducer": reducers.DoNothingReducer()}),
    "softmax_scale=-1": ("NCALoss", {"softmax_scale": -1}),
    "swap=True": ("TripletMarginLoss", {"swap": True}),
    "alpha=-1": ("MultiSimilarityLoss", {"alpha": -1}),
    "temperature=-0.5": ("SupConLoss", {"temperature": -0.5}),
}


@pytest.mark.parametrize("option", OPTIONS)
def test_what_is_not_served_is_said_once(option):
    name, options = OPTIONS[option]
    loss = getattr(losses, name)(**copy.deepcopy(options))
    their = getattr(library, name)(**copy.deepcopy(options))
    x = rows(len(Y))
    with pytest.warns(UserWarning, match=f"{name}: .*{option}.*not served.*computes it") as said:
        found = loss(x, Y)
    assert said[0].filename == __file__
    found = loss(x, Y, miners.MultiSimilarityMiner()(x, Y))  # no second warning
    want = their(x, Y, tuple(miners.MultiSimilarityMiner()(x, Y)))
    if isinstance(want, torch.Tensor):
        torch.testing.assert_close(found, want)
        assert loss.calls["fallback"] + loss.calls["lists"] == 2
    strict = getattr(losses, name)(**copy.deepcopy(options), strict=True)
    with pytest.raises(ValueError, match=f"{name}: expected options .* got .*{option}.*without"):
        strict(x, Y)


def test_a_formula_of_a_subclass_is_its_own():
    class Doubled(losses.SupConLoss):
        def _compute_loss(self, mat, pos_mask, neg_mask):
            found = super()._compute_loss(mat, pos_mask, neg_mask)
            return {"loss": {**found["loss"], "losses": 2 * found["loss"]["losses"]}}

    with pytest.warns(UserWarning, match="Doubled._compute_loss is not served"):
        got = Doubled()(rows(len(Y)), Y)
    torch.testing.assert_close(got, 2 * library.SupConLoss()(rows(len(Y)), Y))

    class Named(losses.SupConLoss):
        pass

    named = Named(strict=True)
    named(rows(len(Y)), Y)
    assert named.calls == {"kernels": 1}


@pytest.mark.parametrize("name", LOSSES)
def test_modules_are_copied_saved_and_told_apart(name):
    loss, kind = ours(name), getattr(library, name)
    assert isinstance(loss, kind) and type(loss).__name__ == name
    want = step(loss, rows(len(Y)), Y)
    for copied in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert_close(step(copied, rows(len(Y)), Y), want, torch.float64)
    assert list(loss.state_dict()) == list(kind().state_dict())


@pytest.mark.parametrize("kind", [torch.float32, torch.bool, torch.int32, torch.uint8])
def test_labels_of_any_dtype(kind):
    y = (Y > 3).to(kind)
    loss = ours("MultiSimilarityLoss")
    assert_close(step(loss, rows(len(Y)), y), step(theirs(loss), rows(len(Y)), y), torch.float64)
    assert loss.calls == {"kernels": 1}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((rows(3), torch.arange(2)), "Number of embeddings must equal"),
        ((rows(3), torch.zeros(3, 2).long()), "labels must be a 1D tensor"),
        ((rows(3)[0], torch.arange(D := 6)), "embeddings must be a 2D tensor"),
        ((rows(3), None), "labels and indices_tuple cannot both be None"),
        ((rows(3), torch.arange(3), None, rows(4), torch.arange(3)), "Number of embeddings"),
    ],
)
def test_errors_of_the_library(args, said):
    for loss in (ours("MultiSimilarityLoss"), library.MultiSimilarityLoss()):
        with pytest.raises(ValueError, match=said):
            loss(*args)


@pytest.mark.parametrize("name", LOSSES)
def test_autocast(name):
    """Losses of half rows stay in float32, as there; and what a model gave is not mined in half."""
    loss = ours(name)
    want, _ = step(loss, rows(len(Y)), Y, dtype=torch.float16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide = loss(rows(len(Y)).half(), Y)
    assert wide.dtype == torch.float32
    assert math.isclose(wide, want, rel_tol=1e-3)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "miner"),
    [
        ("TripletMarginLoss", None),
        ("LiftedStructureLoss", None),
        ("MultiSimilarityLoss", "MultiSimilarityMiner"),
    ],
)
def test_a_compiled_step(name, miner):
    """Alone, and with a miner, which is the library's in a graph: its lists are what it gives."""
    warnings.simplefilter("ignore")  # of graphs that break, as the library's do
    torch._dynamo.reset()
    find = None if miner is None else getattr(miners, miner)(epsilon=0.3)
    loss = ours(name)
    want = step(loss, rows(len(Y)), Y, miner=find)
    traced = torch.compile(loss, backend="eager")
    find = None if find is None else torch.compile(find, backend="eager")
    assert_close(step(traced, rows(len(Y)), Y, miner=find), want, torch.float64)
    torch._dynamo.reset()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("road", ["kernels", "lists"])
def test_a_second_derivative_names_a_way_that_there_is(name, road):
    cosine = distances.CosineSimilarity()
    loss = ours(name, distance=cosine)
    x = rows(len(Y)).requires_grad_()
    pairs = tuple(miner_pair("multi_similarity")[1](x, Y)) if road == "lists" else None

    def second(loss):
        value = 0 + loss(x, Y, pairs)
        value += 1  # as of a sum of losses
        (dx,) = torch.autograd.grad(value, x, create_graph=True)
        return torch.autograd.grad(dx.square().sum(), x)[0]

    with pytest.raises(RuntimeError, match=f"^{name}: .* no second .* own class has one with"):
        second(loss)
    assert second(theirs(loss)).any()
    if name != "CircleLoss":
        loss.distance = distances.LpDistance()
        with pytest.raises(RuntimeError, match="and none with LpDistance$"):
            second(loss)


def test_a_second_derivative_of_euclidean_distances_is_not_theirs_either():
    their = library.TripletMarginLoss()
    x = rows(len(Y)).requires_grad_()
    (dx,) = torch.autograd.grad(their(x, Y), x, create_graph=True)
    with pytest.raises(NotImplementedError, match="cdist_backward"):
        dx.square().sum().backward()


def test_losses_that_are_not_reduced_have_no_second_derivative():
    loss = ours("SupConLoss", reducer=reducers.DoNothingReducer())
    x = rows(len(Y)).requires_grad_()
    each = loss(x, Y)["loss"]["losses"]
    with pytest.raises(RuntimeError, match="^SupConLoss: .*own class"):
        torch.autograd.grad(each.sum(), x, create_graph=True)
    loss(x, Y)["loss"]["losses"].sum().backward()
    assert x.grad.any()


def test_transforms_name_a_way_that_there_is():
    loss = ours("SupConLoss")
    with pytest.raises(RuntimeError, match="^SupConLoss: .*; use pytorch_metric_learning's own"):
        torch.func.grad(lambda x: loss(x, Y))(rows(len(Y)))
    with torch.autograd.forward_ad.dual_level():
        x = torch.autograd.forward_ad.make_dual(rows(len(Y)), rows(len(Y), 1))
        with pytest.raises(RuntimeError, match="^embeddings: .*; use pytorch_metric_learn"):
            loss(x, Y)
    torch.func.grad(lambda x: theirs(loss)(x, Y))(rows(len(Y)))


def test_other_errors_stay_what_they_are():
    with pytest.raises(RuntimeError, match="written into"):
        x = rows(len(Y))
        pairs = miners.MultiSimilarityMiner()(x, Y)
        x += 1
        ours("SupConLoss")(x, Y, pairs)
