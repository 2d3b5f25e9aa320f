"""Losses of several processes against one that has all their rows: 2 and 4 processes of gloo."""

import copy
import re
import types

import family
import pytest
import ranks
import torch
import torch.distributed as dist

import ms_kernels
from ms_kernels import CrossBatchMemory, MultiSimilarityLoss, NTXentLoss, PairLoss
from ms_kernels.api.everybody import GlobalLosses
from ms_kernels.backends import dispatch
from ms_kernels.checks import Pairs
from ms_kernels.distributed import DistributedLoss

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{world: what each of its ranks found}, each run when first asked for."""
    kept = {}

    def of(world):
        if world not in kept:
            kept[world] = ranks.run(world, tmp_path_factory.mktemp(f"ranks{world}"))
        return kept[world]

    return of


CASES = [(world, name) for world in ranks.SIZES for name in ranks.cases(world)]


@pytest.mark.parametrize(("world", "name"), CASES, ids=str)
def test_the_loss_of_the_global_batch(found, world, name):
    sizes, loss, names = ranks.cases(world)[name]
    want = ranks.steps(copy.deepcopy(loss), sizes, names)
    everybody = found(world)
    for rank, mine in enumerate(everybody):
        for (value, dx, _), (whole, every_dx, _) in zip(mine[name], want, strict=True):
            own = ranks.part(whole, sizes, rank) if whole.ndim else whole
            torch.testing.assert_close(value, own, rtol=1e-10, atol=1e-12)
            of_rank = ranks.part(every_dx, sizes, rank)
            torch.testing.assert_close(dx, of_rank, rtol=1e-9, atol=1e-12)
    for step, (_, _, learned) in enumerate(want):
        if learned is not None:  # of options that learn: shares that add up
            shares = sum(mine[name][step][2] for mine in everybody)
            torch.testing.assert_close(shares, learned, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("world", ranks.SIZES)
def test_every_process_has_the_same_bits(found, world):
    first, *others = found(world)
    for name in ranks.cases(world):
        for step, (value, *_) in enumerate(first[name]):
            if value.ndim == 0:
                assert all(torch.equal(value, other[name][step][0]) for other in others)


REFUSED = {
    "labels": r"RuntimeError: DistributedLoss: rank 1: ValueError: labels: expected shape \(4,\)",
    "no tensor": "RuntimeError: DistributedLoss: rank 1: TypeError: embeddings: expected a tensor",
    "dimension": r"ValueError: embeddings: .* got shape \(N, 5\) of torch.float32 on rank 0 and "
    r"shape \(N, 4\)",
    "dtype": "ValueError: embeddings: .* torch.float32 on rank 0 and .* torch.float64 on rank 1",
    "options": r"ValueError: loss: .* beta=50.0.* on rank 0 and .*beta=40.0.* on rank 1",
    "ids": "ValueError: ids: expected the same on every rank, got None on rank 0 and given on",
    "memory": r"RuntimeError: DistributedLoss: rank 1: ValueError: embeddings: .* \(N, 6\)",
    "mask": "RuntimeError: DistributedLoss: rank 1: ValueError: anchor_mask, sample_weight: expec",
    "eval": "ValueError: memory: .* training=True, .* on rank 0 and training=False",
    "weight": "RuntimeError: DistributedLoss: rank 1: ValueError: sample_weight: expected a const",
    "gradient": "ValueError: embeddings: expected to require a gradient on every rank or on none",
    "after": "True",
    "later": "RuntimeError: DistributedLoss: rank 1: RuntimeError: no memory",
    "learns or not": r"ValueError: loss: .*alpha=2.0, .* on rank 0 and .*alpha=2.0 \(learns\)",
    "learned": r"ValueError: loss: .*BinLifted\(alpha=2.0.* on rank 0 and .*alpha=3.0.* on rank 1",
    "learns": "RuntimeError: DistributedLoss: rank 1: RuntimeError: no memory",
    "whole": "RuntimeError: DistributedLoss: rank 1: RuntimeError: no memory",
    "last": "RuntimeError: DistributedLoss: rank 1: RuntimeError: no memory",
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_hear_of_an_error(found, name):
    for mine in found(2):
        assert re.match(REFUSED[name], mine["refusals"][name], re.S), mine["refusals"][name]


def test_a_backward_pass_sends_nothing(found):
    """Sizes, rows, labels, two of statistics and two words that all is well."""
    for mine in found(2):
        forward, backward = mine["sent"]
        assert forward == ["_gather_into"] * 7 and backward == []


def test_a_rank_that_wants_no_gradient_takes_part(found):
    (loss, dx), (other, nothing) = (mine["without gradient"] for mine in found(2))
    x, y, _ = ranks.batch((6, 6))
    whole = ms_kernels.TripletLoss()(x.requires_grad_(), y)
    (want,) = torch.autograd.grad(whole, x)
    torch.testing.assert_close(loss, whole.detach())
    assert torch.equal(loss, other) and nothing is None
    torch.testing.assert_close(dx, want[:6])


def test_a_process_outside_of_the_group_is_told(found):
    inside, outside = (mine["of a group"] for mine in found(2))
    x, y, _ = ranks.batch((6,))
    assert torch.equal(inside, MultiSimilarityLoss()(x, y))
    assert outside.startswith("group: expected a group of this process, got")


def test_a_backward_pass_multiplies_as_the_forward_pass(found):
    """Other products would mine other pairs than the statistics are of."""
    assert all(mine["precisions"] == ["highest", "medium"] for mine in found(2))


def test_without_a_group_it_is_the_loss():
    x, y, _ = ranks.batch((9,))
    assert torch.equal(DistributedLoss(MultiSimilarityLoss())(x, y), MultiSimilarityLoss()(x, y))


@pytest.mark.parametrize("name", ["cuda", "triton"])
def test_who_may_lose_the_hardest_pair(monkeypatch, name):
    """CUDA's kernels, whose statistics and gradients are of other numbers of rows."""
    monkeypatch.setattr(dispatch, "resolve", lambda *_: name)
    x, y, ids = ranks.batch((4, 2))
    everybody = Pairs(x, y, ids, None, None, None)
    for mining in family.MININGS:
        loss = PairLoss(ms_kernels.MultiSimilarity(), mining)
        exchange = types.SimpleNamespace(own=slice(0, 4))
        losses = GlobalLosses(loss, everybody, everybody, None, exchange)
        ties = isinstance(mining, (ms_kernels.HardestMining, ms_kernels.TopKMining))
        assert losses._may_lose_hardest(x, None) == (ties and name == "cuda")


def test_a_circle_that_has_learned_too_far_is_told_so():
    x, y, ids = ranks.batch((4, 2))
    everybody = Pairs(x, y, ids, None, None, None)
    loss = PairLoss(ms_kernels.Circle(gamma=torch.nn.Parameter(torch.tensor(1e6).double())))
    losses = GlobalLosses(loss, everybody, everybody, None, types.SimpleNamespace(own=slice(0, 6)))
    wanted = r"^loss: Circle\(m=0.4, gamma=1000000.0\), as .* be: gamma \* m\*\*2 must be at most"
    with pytest.raises(ValueError, match=wanted):
        losses.of_memory(x, y, ids)


LEARNS_IN_PANELS = NTXentLoss(torch.nn.Parameter(torch.tensor(0.1)), backend="panels")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.nn.MSELoss(),), "loss: expected a PairLoss or a CrossBatchMemory"),
        (
            (CrossBatchMemory(LEARNS_IN_PANELS, 5, 8),),
            "loss: .* kernels in which temperature of NTXent may learn, got backend='panels'; use",
        ),
        (
            (CrossBatchMemory(PairLoss(ranks.Own()), 5, 8),),
            "loss: expected rules of this package .* processes, got Own with NoMining; use the mem",
        ),
        (
            (CrossBatchMemory(MultiSimilarityLoss(backend="reference"), 5, 8),),
            "loss: expected rules of this package .* got backend='reference'; use backend='auto'",
        ),
        (
            (MultiSimilarityLoss(), None, "star"),
            "schedule: expected one of 'gather', 'ring', got 'star'",
        ),
    ],
)
def test_bad_options(given, message):
    with pytest.raises((TypeError, ValueError), match=message):
        DistributedLoss(*given)


def test_a_group_that_is_gone_is_an_error(monkeypatch, tmp_path):
    """Each process would go on with a loss of its own."""
    x, y, _ = ranks.batch((9,))
    given = DistributedLoss(MultiSimilarityLoss(), group=object())
    with pytest.raises(RuntimeError, match="group: expected the process group .* destroyed"):
        given(x, y)
    used = DistributedLoss(MultiSimilarityLoss())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        monkeypatch.setattr(DistributedLoss, "_alone", lambda self: False)
        used(x, y)
    finally:
        dist.destroy_process_group()
    with pytest.raises(RuntimeError, match="group: expected the process group .* destroyed"):
        used(x, y)
