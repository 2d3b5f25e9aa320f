"""Blocks of rows that go round: the loss of one process that has them all, and what is held."""

import copy
import re

import pytest
import ranks
import ring_ranks
import torch
import torch.distributed as dist

from bench.check import ROUNDING
from ms_kernels import (
    CrossBatchMemory,
    HistogramLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    PairLoss,
    TopKMining,
    TripletLoss,
)
from ms_kernels.distributed import SCHEDULES, DistributedLoss

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """{world: what each of its ranks found}, each run when first asked for."""
    kept = {}

    def of(world):
        if world not in kept:
            folder = tmp_path_factory.mktemp(f"ring{world}")
            kept[world] = ranks.run(world, folder, ring_ranks.main)
        return kept[world]

    return of


CASES = [(world, name) for world in ring_ranks.SIZES for name in ring_ranks.cases(world)]


@pytest.mark.parametrize(("world", "name"), CASES, ids=str)
def test_the_loss_of_the_global_batch(found, world, name):
    sizes, loss, names = ring_ranks.cases(world)[name]
    whole, every_dx, learned, stats = ring_ranks.found_by(copy.deepcopy(loss), sizes, names, None)
    everybody = found(world)
    for rank, mine in enumerate(everybody):
        value, dx, _, own = mine[name]
        of_rank = ranks.part(whole, sizes, rank) if whole.ndim else whole
        torch.testing.assert_close(value, of_rank, rtol=1e-10, atol=1e-12)
        wanted = ranks.part(every_dx, sizes, rank)
        torch.testing.assert_close(dx, wanted, rtol=1e-9, atol=1e-12)
        for got, want in zip(own or (), stats or (), strict=True):
            torch.testing.assert_close(got, ranks.part(want, sizes, rank), rtol=1e-10, atol=1e-12)
        if value.ndim == 0:
            assert torch.equal(value, everybody[0][name][0])  # the same to the bit
    if learned is not None:  # of options that learn: shares that add up
        shares = sum(mine[name][2] for mine in everybody)
        torch.testing.assert_close(shares, learned, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("dtype", ring_ranks.DTYPES, ids=str)
def test_rounding(found, dtype, schedule):
    """What the benchmark allows to float32; of 16 bits the gradient's own rounding too."""
    sizes = (6, 5, 5)
    x, y, _ = ranks.batch(sizes, dtype=dtype)
    leaf = x.double().requires_grad_()
    want = MultiSimilarityLoss()(leaf, y)
    want.backward()
    losses, parts = zip(*(mine[dtype, schedule] for mine in found(3)), strict=True)
    assert all(part.dtype == dtype for part in (*losses, *parts))
    own = torch.finfo(dtype).eps if dtype.itemsize == 2 else 0
    pairs = (torch.cat(parts), leaf.grad), *((loss, want.detach()) for loss in losses)
    for got, exact in pairs:
        worst = (got.double() - exact).abs().max()
        assert worst <= (2 * ROUNDING + own) * exact.abs().max()


def test_a_run_gives_the_bits_of_the_last(found):
    for first, second in (mine["again"] for mine in found(3)):
        assert all(map(torch.equal, first, second))


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_a_process_holds_its_rows_and_two_blocks(found, reduction):
    """Nothing that comes is longer than the rows of one, what is gathered is a few numbers, and a
    block is forgotten when the next has come: of three processes the first visitor is under way
    while own rows are looked at, the second while the first is, and then nothing."""
    sizes = (60, 50, 50)
    for rank, mine in enumerate(found(3)):
        seen = mine[f"held-{reduction}"]
        assert seen["held"] == [1, 2, 1] * 2 and seen["gathered"] <= 9
        coming = [sizes[(rank - step) % 3] for step in (1, 2)] * 3
        assert [block[0] for block in seen["received"]] == [(n, ranks.D) for n in coming]
        besides = {shape[1:] for block in seen["received"] for shape in block[1:]}
        assert besides == {(), (6,), (2,)}  # labels and ids; numbers and counts of a gradient


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_the_next_block_is_under_way_while_one_is_computed(found, reduction):
    """Of a loss that mines, hardest pairs, sums, and the gradient, which waits where rows may be
    worth this or that."""
    for mine in found(3):
        seen = mine[f"held-{reduction}"]
        hardest = ["pass", "wait"] * 2
        sums = ["pass", "sums", "wait"] * 2 + ["sums"]
        gradient = ["pass", "gradient", "wait"] * 2 + ["gradient"]
        later = reduction == "none"
        assert seen["forward"] == hardest + sums + ([] if later else gradient)
        assert seen["backward"] == (gradient if later else [])


REFUSED = {
    "schedule": "ValueError: schedule: .* got 'gather' on rank 0 and 'ring' on rank 1",
    "hardest_of_block": "RuntimeError: DistributedLoss: rank 1: RuntimeError: no memory",
    "block_statistics": "RuntimeError: DistributedLoss: rank 1: RuntimeError: no memory",
    "embedding_gradient": "RuntimeError: DistributedLoss: rank 1: RuntimeError: no memory",
    "after": "True",
}


@pytest.mark.parametrize("name", REFUSED)
def test_all_hear_of_an_error(found, name):
    for mine in found(3):
        assert re.match(REFUSED[name], mine["refusals"][name], re.S), mine["refusals"][name]


def test_a_row_that_is_not_finite_is_told_to_all(found):
    for value, dx, stats in (one for mine in found(3) for one in mine["not finite"]):
        assert value.isnan().all() and dx.isnan().all() and stats.neg_sum.isnan().all()
        assert not stats.pos_kept.any() and not stats.neg_kept.any()


def test_ranks_of_a_group_are_its_own(found):
    x, y, _ = ranks.batch((5, 4))
    want = MultiSimilarityLoss()(x, y)
    nobody, *others = (mine["in a group"] for mine in found(3))
    assert nobody is None
    for loss in others:
        torch.testing.assert_close(loss, want, rtol=1e-12, atol=0)


def test_alone_it_is_the_loss():
    x, y, _ = ranks.batch((9,))
    loss = MultiSimilarityLoss()
    assert torch.equal(DistributedLoss(loss, schedule="ring")(x, y), loss(x, y))


LEARNS = TripletLoss(torch.nn.Parameter(torch.tensor(0.1)))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (TripletLoss(), "'ring' expected rules .* no triplet loss, .* got Triplet with NoMining"),
        (LEARNS, "'ring' expected rules .* no triplet loss, .* got Triplet with NoMining"),
        (HistogramLoss(), "'ring' expected rules of this package, .* got Histogram"),
        (PairLoss(ranks.Own()), "'ring' expected rules of this package, .* got Own"),
        (CrossBatchMemory(MultiSimilarityLoss(), 5, 8), "expected 'gather' with a CrossBatchMem"),
        (MultiSimilarityLoss(backend="reference"), "'ring' expected a backend .* got 'reference'"),
        (NTXentLoss(backend="triton"), "'ring' expected a backend .* got 'triton'"),
        (NTXentLoss(mining=TopKMining(2), backend="cpu"), "'ring' expected a backend .* got 'cpu'"),
    ],
    ids=lambda given: type(given).__name__,
)
def test_what_blocks_cannot_give_is_refused(loss, message):
    with pytest.raises(ValueError, match=f"^schedule: {message}.*schedule='gather'"):
        DistributedLoss(loss, schedule="ring")
