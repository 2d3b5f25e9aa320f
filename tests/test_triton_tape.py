"""Steps that are played again from a tape: the bits of a call, whatever lies where."""

import threading

import pytest
import torch
from cases import SPECS, make_batch
from torch.utils import _python_dispatch

import ms_kernels

pytest.importorskip("triton")
if "triton" not in ms_kernels.backends.dispatch.built():
    pytest.skip(ms_kernels.backends()["triton"].note, allow_module_level=True)

from ms_kernels import pair_loss, settings  # noqa: E402
from ms_kernels.backends import triton as backend  # noqa: E402
from ms_kernels.backends.interface import Side  # noqa: E402
from ms_kernels.backends.triton import side_rows, tape  # noqa: E402
from ms_kernels.backends.triton.tiles import interpreted  # noqa: E402
from ms_kernels.rules import mining as mine  # noqa: E402
from ms_kernels.rules import weighting as weigh  # noqa: E402
from ms_kernels.rules.spec import PairSpec  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"
MS, MINED = weigh.MultiSimilarity(), mine.MultiSimilarityMining()


@pytest.fixture(autouse=True)
def poison():
    """None: filling what is allocated is not what a tape knows how to do."""


@pytest.fixture(autouse=True)
def no_tapes():
    tape.forget()
    yield
    tape.forget()


def batches(count, shape, dtype=torch.float32):
    for seed in range(count):
        x, y, r, z = make_batch(*shape, SPECS["default"], dtype).to(DEVICE)
        order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed)).to(DEVICE)
        yield x[order] * (1 + seed), y[order], r, z


def step(x, y, r, z, weighting=MS, mining=MINED, learn=False, **options):
    leaves = [x.detach().clone().requires_grad_()]
    if learn:
        r = r.detach().clone().requires_grad_()
        leaves.append(r)
    rules = {"weighting": weighting, "mining": mining, "backend": "triton"}
    loss = pair_loss(leaves[0], y, r, z, **rules, **options)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def compare(given, **options):
    """Of batches of one kind the second is taken down, those after it are played."""
    first, second, *others = given
    played = []
    for batch in (first, second):
        step(*batch, **options)
    kept = dict(tape._tapes)
    assert len(kept) == 1 and None not in kept.values()
    real = tape.Tape.play
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tape.Tape, "play", lambda *given: played.append(0) or real(*given))
        got = [step(*batch, **options) for batch in others]
    assert len(played) == len(others) and kept == tape._tapes
    for batch, found in zip(others, got, strict=True):
        tape.forget()
        assert all(map(torch.equal, found, step(*batch, **options)))


SHAPES = [(40, None, 20), (70, None, 100), (30, 50, 20)]


@pytest.mark.parametrize(
    ("shape", "reduction"), list(zip(SHAPES, ["mean", "mean_valid", "sum"], strict=True)), ids=str
)
def test_a_step_from_a_tape_has_the_bits_of_one_without(shape, reduction):
    compare(batches(4, shape), reduction=reduction)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    list(zip(SHAPES, [torch.float64, torch.bfloat16, torch.float16], strict=True)),
    ids=str,
)
def test_of_every_dtype(shape, dtype):
    compare(batches(3, shape, dtype))


@pytest.mark.parametrize(
    ("weighting", "mining"),
    [
        (weigh.NTXent(), mine.HardestMining()),
        (weigh.SupCon(), mine.TopKMining(3)),
        (weigh.Contrastive(), mine.SemiHardMining()),
        (weigh.Circle(), mine.NoMining()),
    ],
    ids=str,
)
def test_of_other_rules(weighting, mining):
    compare(batches(3, (40, None, 20)), weighting=weighting, mining=mining)


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
def test_statistics_too(shape):
    found = [ms_kernels.row_statistics(*b, backend="triton") for b in batches(4, shape)]
    assert len(tape._tapes) == 1 and None not in tape._tapes.values()
    tape.forget()
    for batch, got in zip(batches(4, shape), found, strict=True):
        assert all(map(torch.equal, got, ms_kernels.row_statistics(*batch, backend="triton")))
        tape.forget()


def test_counted_steps():
    """Told from plain ones, and from those whose losses are worth one each."""
    shape = (40, 30, 20)
    compare(batches(3, shape), learn=True, sample_weight=torch.linspace(-1, 2, 40, device=DEVICE))
    weights = [torch.rand(40, device=DEVICE) for _ in range(4)]
    for worth in ([None] * 4, weights):
        tape.forget()
        found = []
        for (x, y, r, z), dloss in zip(batches(4, shape), worth, strict=True):
            how = Side(x, y, None), Side(r, z, None), PairSpec(), True, True, dloss
            backend.loss_and_gradient(*how)
            found.append(backend.counted_loss(*how, None, False))
        assert len(tape._tapes) == 2 and None not in tape._tapes.values()
        for (x, y, r, z), dloss, got in zip(batches(4, shape), worth, found, strict=True):
            tape.forget()
            how = Side(x, y, None), Side(r, z, None), PairSpec(), True, True, dloss
            want = backend.counted_loss(*how, None, False)
            assert all(map(torch.equal, got.stats, want.stats))
            assert torch.equal(got.losses, want.losses)
            assert torch.equal(got.dx, want.dx) and torch.equal(got.dr, want.dr)


def test_of_refs_that_learn_and_ids():
    shape = (30, 50, 20)
    compare(batches(3, shape), learn=True)
    ids = {"ids": torch.arange(30, device=DEVICE), "ref_ids": torch.arange(50, device=DEVICE)}
    compare(batches(3, shape), learn=True, **ids)


def test_labels_that_are_sorted_are_sorted_again(monkeypatch):
    monkeypatch.setattr(side_rows, "MOST_COUNTED", 16)
    compare(batches(3, (40, None, 20)))
    compare(batches(3, (30, 50, 20)), learn=True)


def test_embeddings_whose_rows_lie_apart():
    def apart():
        for x, y, r, z in batches(4, (40, None, 20)):
            wide = torch.zeros(40, 24, device=DEVICE)
            wide[:, 2:22] = x
            yield wide[:, 2:22], y, r, z

    given = list(apart())
    for x, y, *_ in given:
        leaf = x.requires_grad_()
        loss = ms_kernels.multi_similarity_loss(leaf, y, backend="triton")
        (dx,) = torch.autograd.grad(loss, leaf)
        tight = x.detach().clone().requires_grad_()
        want = ms_kernels.multi_similarity_loss(tight, y, backend="triton")
        assert torch.equal(loss, want) and torch.equal(dx, torch.autograd.grad(want, tight)[0])
    assert len(tape._tapes) == 2 and None not in tape._tapes.values()


def test_what_a_step_depends_on_is_told_apart(monkeypatch):
    """Sizes, dtypes, options, precision, budgets, which tensors are one, and where they lie."""
    x, y, r, z = next(batches(1, (40, 40, 20)))
    kinds = [
        dict(),
        dict(reduction="sum"),
        dict(mining=mine.NoMining()),
        dict(weighting=weigh.MultiSimilarity(3.0)),
        dict.fromkeys(("ids", "ref_ids"), torch.arange(40, device=DEVICE)),
        dict(learn=True),
    ]
    for options in kinds * 2:
        step(x, y, r, z, **options)
    assert len(tape._tapes) == len(kinds)
    step(x, y, x, y)
    step(x, y, x, y)
    assert len(tape._tapes) == len(kinds) + 1
    for _ in range(2):
        step(x[:39], y[:39], r, z)
        step(x[1:], y[1:], r, z)  # the labels lie at half an alignment
    assert len(tape._tapes) >= len(kinds) + 3
    before = len(tape._tapes)
    monkeypatch.setattr(settings.options, "_workspace_bytes", 1 << 20)
    for _ in range(2):
        step(x, y, r, z)
    assert len(tape._tapes) == before + 1
    torch.set_float32_matmul_precision("high")
    try:
        for _ in range(2):
            step(x, y, r, z)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert len(tape._tapes) == before + 2


def test_what_a_tape_does_not_know_takes_none():
    """Of triplets, and of a step that asks PyTorch for anything else."""
    batch = next(batches(1, (40, None, 20)))
    for _ in range(3):
        step(*batch, weighting=weigh.Triplet(), mining=mine.NoMining())
    assert not tape._tapes
    x = torch.ones(3, device=DEVICE)

    def run():
        return (x + 1,)

    for _ in range(3):
        (found,) = tape.taped("sum", [x], run)
        assert found.tolist() == [2, 2, 2]
    assert list(tape._tapes.values()) == [None]


def test_tapes_are_not_kept_for_ever(monkeypatch):
    monkeypatch.setattr(tape, "MOST_KEPT", 3)
    x = torch.ones(3, device=DEVICE)
    for key in [k for k in range(20) for _ in range(3)]:
        tape.taped(key, [x], lambda: (torch.empty(2, device=DEVICE),))
        assert len(tape._tapes) <= 3 and len(tape._met) <= 3


def test_a_tape_keeps_nothing_of_what_was_taken_down():
    for batch in batches(3, (40, None, 20)):
        step(*batch)
    (kept,) = tape._tapes.values()
    launches = [launch for e in kept.entries if isinstance(e, list) for launch in e]
    held = [a for launch in launches for a in (*launch.arguments, *(launch.views or ()))]
    assert len(held) > 40
    assert not any(t.numel() and not t.is_meta for t in held if isinstance(t, torch.Tensor))


def test_two_threads_that_take_down_at_once_leave_no_mode_behind():
    """torch keeps one number for all threads of whether a mode is active."""
    first, second, left = (threading.Event() for _ in range(3))
    x = torch.ones(3, device=DEVICE)

    def empty():
        return (torch.empty(2, device=DEVICE),)

    def one():
        def run():
            first.set()
            second.wait(5)
            return empty()

        tape.taped("one", [x], empty), tape.taped("one", [x], run)
        left.set()

    def other():
        def run():
            second.set()
            left.wait(5)
            return empty()

        tape.taped("other", [x], empty), tape.taped("other", [x], run)

    threads = [threading.Thread(target=one), threading.Thread(target=other)]
    threads[0].start()
    first.wait(5)
    threads[1].start()
    for thread in threads:
        thread.join()
    assert not _python_dispatch.is_in_torch_dispatch_mode()


def test_tensors_that_live_at_other_times_share_their_place():
    from ms_kernels.backends.triton.workspace import Life, lives_of, placed

    sizes = {0: 1000, 1: 300, 2: 900, 3: 10}
    lives = {0: Life(0, 1), 1: Life(1, 3), 2: Life(2, 3), 3: Life(4, 4)}
    offsets, total = placed(sizes, lives)
    assert offsets == {0: 0, 1: 1024, 2: 0, 3: 0} and total == 1536
    a, b, c = torch.zeros(8), torch.zeros(8), torch.zeros(8)
    lives = lives_of([a, b, c], [(a, 3), (), (a[2:], b)])
    assert lives == {0: Life(0, 2), 1: Life(2, 2)}


def test_a_tape_takes_less_room_than_all_that_a_step_allocates(monkeypatch):
    """What both gradients of refs that learn add up by parts lies in one place."""
    seen, real = [], tape.placed
    monkeypatch.setattr(
        tape, "placed", lambda sizes, lives: seen.append(sizes) or real(sizes, lives)
    )
    batch = next(batches(1, (40, 50, 100)))
    for _ in range(2):
        step(*batch, learn=True)
    (found,) = tape._tapes.values()
    assert found.workspace_bytes < 0.9 * sum(seen[0].values())


def test_a_step_that_fits_only_once_is_not_taken_down(monkeypatch):
    x = torch.ones(3, device=DEVICE)
    calls = []

    def run():
        calls.append(tape._local.__dict__.get("taking"))
        if calls[-1] is not None:
            raise torch.OutOfMemoryError("too much at once")
        return (x,)

    for _ in range(4):
        assert tape.taped("large", [x], run)[0] is x
    assert [c is not None for c in calls] == [False, True, False, False, False]


@pytest.mark.skipif(interpreted(), reason="there is no driver")
def test_the_driver_is_given_the_launches_of_a_tape():
    """Where the module is built and the driver says what a kernel takes, since CUDA 12.4."""
    pytest.importorskip("ms_kernels._tape")
    for batch in batches(3, (300, None, 40), torch.bfloat16):
        step(*batch)
    (taken,) = tape._tapes.values()
    assert taken.native is not None and len(taken.native) > 5
