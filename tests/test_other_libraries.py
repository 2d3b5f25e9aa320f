"""Arguments of other libraries: every public callable names the way, none has Python's error."""

import inspect

import pytest
import torch

import ms_kernels
from ms_kernels.distributed import DistributedLoss

PUBLIC = {name: getattr(ms_kernels, name) for name in ms_kernels.__all__}
FUNCTIONS = {name: f for name, f in PUBLIC.items() if inspect.isfunction(f)}
CLASSES = {
    name: kind
    for name, kind in {**PUBLIC, "DistributedLoss": DistributedLoss}.items()
    if isinstance(kind, type) and issubclass(kind, torch.nn.Module)
}
X, Y = torch.randn(6, 4), torch.arange(6) // 2
UNKNOWN = {
    "indices_tuple": "mining=MultiSimilarityMining()",
    "miner": "mining=MultiSimilarityMining()",
    "reducer": "reduction= is 'mean'",
    "neg_margin": "positive_margin and negative_margin",
    "collect_stats": "keep_statistics=True",
}
# Of functions, whose way is an argument of their own; of others there is none.
OWN_WAYS = {
    "indices_tuple": {"mining": "by mining=, such as", "epsilon": "by epsilon=, that of"},
    "miner": {"mining": "by mining=, such as", "epsilon": "by epsilon=, that of"},
    "reducer": {"reduction": "reduction= is 'mean'"},
    "collect_stats": {"return_statistics": "return_statistics=True"},
}


def ways_of(name, option):
    """What must be in the message, and what may not."""
    if name in CLASSES or name == "pair_weights" or option not in OWN_WAYS:
        return [UNKNOWN[option]], []
    known = inspect.signature(FUNCTIONS[name]).parameters
    ways = OWN_WAYS[option].items()
    said = [way for argument, way in ways if argument in known][:1]
    return said, [way for argument, way in ways if argument not in known] + ["keep_statistics="]


def made(kind):
    """A module with what it cannot do without."""
    loss = ms_kernels.MultiSimilarityLoss()
    given = {
        "PairLoss": (ms_kernels.NTXent(),),
        "CrossBatchMemory": (loss, 4, 8),
        "DistributedLoss": (loss,),
    }
    return given.get(kind.__name__, ())


def test_all_are_tried():
    assert {"pair_loss", "multi_similarity_loss", "clip_loss", "mined_pairs"} <= set(FUNCTIONS)
    assert {"PairLoss", "TripletLoss", "CrossBatchMemory", "DistributedLoss"} <= set(CLASSES)
    assert len(FUNCTIONS) >= 8 and len(CLASSES) >= 17


@pytest.mark.parametrize("option", UNKNOWN)
@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_an_unknown_argument_names_the_way(name, option):
    if name in FUNCTIONS:
        calls = [lambda **options: FUNCTIONS[name](X, Y, **options)]
    else:
        kind = CLASSES[name]
        module = kind(*made(kind))
        calls = [
            lambda **options: kind(*made(kind), **options),
            lambda **options: module(X, Y, **options),
        ]
    for call in calls:
        message = rf"^{name}(\(\))?: expected options among .*, got {option}; "
        with pytest.raises(TypeError, match=message) as found:
            call(**{option: object()})
        said, unsaid = ways_of(name, option)
        assert all(way in str(found.value) for way in said)
        assert not any(way in str(found.value) for way in unsaid)
        assert "ms_kernels.compat.pytorch_metric_learning has classes" in str(found.value)


@pytest.mark.parametrize("name", [*FUNCTIONS, *CLASSES])
def test_any_other_name_is_named_too(name):
    call = FUNCTIONS[name] if name in FUNCTIONS else CLASSES[name]
    with pytest.raises(TypeError, match=rf"^{name}: expected options among .*, got bta, tmp$"):
        call(*(made(call) if name in CLASSES else (X, Y)), tmp=1, bta=2)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_distance_is_taken_or_named(name):
    """By functions that have none."""
    if "distance" in inspect.signature(FUNCTIONS[name]).parameters:
        with pytest.raises(ValueError, match="distance: expected one of"):
            FUNCTIONS[name](*([len] if name == "streamed_loss" else []), X, Y, **required(name))
        return
    with pytest.raises(TypeError, match=f"{name}: .*, got distance; .*'squared_euclidean'"):
        FUNCTIONS[name](X, Y, distance="euclidean")


def required(name):
    rule = {"weighting": ms_kernels.NTXent()} if name == "pair_loss" else {}
    return {"distance": "hamming", **rule}


@pytest.mark.parametrize(
    ("call", "way"),
    [
        (
            lambda: ms_kernels.CrossBatchMemory(
                ms_kernels.NTXentLoss(), embedding_size=4, memory_size=8
            ),
            r"got embedding_size, memory_size; embedding_dim= is .*; size= is how many rows",
        ),
        (lambda: ms_kernels.clip_loss(X, X, temperature=0.1), r"; scale= is 1 / temperature$"),
        (lambda: ms_kernels.siglip_loss(X, X, logit_bias=1.0), r"; bias= is the bias$"),
        (
            lambda: DistributedLoss(ms_kernels.NTXentLoss(), efficient=True),
            "; a process has the gradient of its own rows",
        ),
        # Where nothing is called so.
        (lambda: ms_kernels.mined_pairs(X, Y, temperature=0.1), r"got temperature$"),
    ],
)
def test_what_it_is_called_here(call, way):
    with pytest.raises(TypeError, match=way):
        call()


def test_signatures_are_what_they_were():
    """help(), and type checkers of those who pass arguments on."""
    for call in (*FUNCTIONS.values(), ms_kernels.CrossBatchMemory, DistributedLoss.forward):
        parameters = inspect.signature(call).parameters.values()
        assert not any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters)
        assert call.__doc__ and call.__module__.startswith("ms_kernels.")
