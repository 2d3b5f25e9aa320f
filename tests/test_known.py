"""Calls that were checked and planned before: they find what a first call finds, and refuse what it
refuses."""

import gc
import weakref

import pytest
import torch
from cases import SPECS, make_batch
from torch import Tensor

import ms_kernels
from ms_kernels import pair_loss
from ms_kernels.api import known
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

pytest.importorskip("ms_kernels._cpu")
from ms_kernels import _cpu  # noqa: E402

MS, MINED = weigh.MultiSimilarity(), mine.MultiSimilarityMining()
SHAPES = [(40, None, 20), (30, 50, 20)]
DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture(autouse=True)
def nothing_known():
    known.forget()
    yield
    known.forget()


def batches(count, shape, dtype=torch.float32):
    for seed in range(count):
        batch = make_batch(*shape, SPECS["default"], dtype)
        order = torch.randperm(len(batch.x), generator=torch.Generator().manual_seed(seed))
        yield batch.x[order] * (1 + seed), batch.y[order], *batch.to("cpu")[2:]


def step(x, y, r, z, learn=False, **options):
    leaves = [x.detach().requires_grad_()]
    if learn:
        r = r.detach().requires_grad_()
        leaves.append(r)
    rules = {"weighting": MS, "mining": MINED} | options
    loss = pair_loss(leaves[0], y, r, z, **rules)
    return [loss.detach(), *torch.autograd.grad(loss.sum(), leaves)]


def compare(given, **options):
    """Once all are known, each has the bits that it has when nothing is."""
    given = list(given)
    got = [step(*batch, **options) for batch in given]
    assert len(known._known) == 1
    for batch, found in zip(given, got, strict=True):
        known.forget()
        assert all(map(torch.equal, found, step(*batch, **options)))


@pytest.mark.parametrize("reduction", ms_kernels.reference.REDUCTIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_known_call_has_the_bits_of_a_new_one(shape, dtype, reduction):
    compare(batches(4, shape, dtype), reduction=reduction, learn=shape[1] is not None)


@pytest.mark.parametrize(
    "weighting", [weigh.NTXent(), weigh.Circle(), weigh.Contrastive()], ids=str
)
def test_of_other_rules_and_ids(weighting):
    ids = {"ids": torch.arange(30), "ref_ids": torch.arange(50)}
    compare(batches(3, SHAPES[1]), weighting=weighting, mining=mine.NoMining(), **ids)


def test_rows_apart_and_elements_apart():
    for way in (lambda x: torch.cat([x, x], 1)[:, 3:23], lambda x: x.t().contiguous().t()):
        known.forget()
        compare((way(x), y, r, z) for x, y, r, z in batches(3, SHAPES[0]))
    doubled = ((x, torch.stack([y, y], 1)[:, 0], r, z) for x, y, r, z in batches(3, SHAPES[0]))
    known.forget()
    compare(doubled)


def test_what_a_plan_depends_on_is_looked_at(monkeypatch):
    (batch,) = batches(1, (600, None, 40))
    before, threads = step(*batch), torch.get_num_threads()
    (found,) = known._known.values()
    assert not found.plans  # the first call may be the only one
    assert all(map(torch.equal, step(*batch), before)) and len(found.plans) == 1
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads + 3)
    assert all(map(torch.equal, step(*batch), before)) and len(found.plans) == 2
    monkeypatch.setattr(ms_kernels.options, "workspace_bytes", 1 << 12)
    assert all(map(torch.equal, step(*batch), before)) and len(found.plans) == 3
    chosen = _cpu.instruction_set()
    try:
        _cpu.use_instruction_set("baseline")
        step(*batch)
    finally:
        _cpu.use_instruction_set(chosen)
    assert len(found.plans) == 3 + (chosen != "baseline")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = batch[0].bfloat16()
        assert step(half, *batch[1:])[0].dtype == torch.float32
    assert step(half, *batch[1:])[0].dtype == torch.bfloat16
    with torch.no_grad():
        assert not pair_loss(*batch[:2], weighting=MS, mining=MINED).requires_grad


def test_a_backend_that_goes_away_is_not_taken(monkeypatch):
    (batch,) = batches(1, SHAPES[0])
    step(*batch)
    monkeypatch.setattr(ms_kernels.backends.cpu, "missing", lambda: "gone")
    ms_kernels.backends.dispatch.forget()
    try:
        want = step(*batch, backend="panels")
        assert all(map(torch.equal, step(*batch), want))
    finally:
        monkeypatch.undo()
        ms_kernels.backends.dispatch.forget()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"normalize": 1}, TypeError, "normalize: expected True or False, got 1"),
        ({"reduction": ["mean"]}, (TypeError, ValueError), "reduction"),
        ({"reduction": "means"}, ValueError, "reduction: expected one of"),
        ({"backend": "gpu"}, ValueError, "backend: expected one of"),
        ({"anchor_mask": torch.ones(3)}, (TypeError, ValueError), "anchor_mask"),
    ],
    ids=str,
)
def test_what_a_first_call_refuses_a_later_one_refuses(options, error, message):
    (batch,) = batches(1, SHAPES[0])
    step(*batch), step(*batch)
    with pytest.raises(error, match=message):
        step(*batch, **options)


def test_tensors_of_no_known_kind_are_looked_at(monkeypatch):
    (x, y, _, _), *_ = batches(1, SHAPES[0])
    step(x, y, None, None), step(x, y, None, None)
    with pytest.raises(TypeError, match="labels: expected an integer dtype"):
        step(x, y.float(), None, None)
    with pytest.raises(ValueError, match=r"labels: expected shape \(40,\)"):
        step(x, y[:-1], None, None)
    with pytest.raises(TypeError, match="embeddings: expected a dense tensor"):
        ms_kernels.multi_similarity_loss(x.to_sparse(), y)

    class Own(Tensor):
        pass

    assert torch.equal(step(x.as_subclass(Own), y, None, None)[0], step(x, y, None, None)[0])
    turned = torch._neg_view(x)
    assert all(map(torch.equal, step(turned, y, None, None), step(-x, y, None, None)))
    with pytest.raises(RuntimeError, match="backend='reference'"):
        torch.func.grad(lambda t: pair_loss(t, y, weighting=MS, mining=MINED))(x)


def test_the_batch_as_its_own_candidates_is_no_copy_of_it():
    x, y, *_ = next(batches(1, SHAPES[0]))
    options = {"weighting": weigh.NTXent(), "mining": mine.NoMining()}
    own = step(x, y, None, None, **options)
    leaf = x.clone().requires_grad_()
    for _ in range(3):
        copy = pair_loss(leaf, y, x.clone(), y.clone(), **options)
        same = pair_loss(leaf, y, leaf, y, **options)
        assert torch.equal(same, own[0]) and not torch.equal(copy, own[0])


def test_zeros_without_memory_are_zeros():
    y = torch.arange(30) // 3
    want = step(torch.zeros(30, 16), y, None, None)
    for _ in range(2):
        got = step(torch._efficientzerotensor((30, 16)), y, None, None)
        assert all(map(torch.equal, got, want))


def test_a_storage_that_was_freed_is_refused():
    x, y, *_ = next(batches(1, SHAPES[0]))
    own = x.clone()
    step(own, y, None, None), step(own, y, None, None)
    own.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="rows, embeddings: expected a storage of"):
        step(own, y, None, None)


@pytest.fixture
def quick_collections():
    """What the session has made before is not looked through again by each gc.collect()."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


def test_rules_are_known_by_what_they_are(quick_collections):
    x, y, *_ = next(batches(1, SHAPES[0]))
    for _ in range(3):
        step(x, y, None, None, weighting=weigh.NTXent(0.3))
    assert len(known._known) == 1
    for beta in range(20, 60):
        rule = weigh.MultiSimilarity(beta=float(beta))
        found = step(x, y, None, None, weighting=rule)
        del rule
        gc.collect()
        want = step(x, y, None, None, weighting=weigh.MultiSimilarity(beta=float(beta)))
        assert torch.equal(found[0], want[0])


def test_what_is_kept_is_bounded_and_holds_no_tensor():
    x, y, *_ = next(batches(1, (300, None, 20)))
    for n in range(2, 280):
        step(x[:n], y[:n], None, None)
    assert 0 < len(known._known) <= known.MOST_KEPT
    own = x.clone().requires_grad_()
    alive = weakref.ref(own)
    for _ in range(3):
        pair_loss(own, y, weighting=MS, mining=MINED).backward()
    del own
    gc.collect()
    assert alive() is None


def test_a_learned_temperature_is_not_kept():
    x, y, *_ = next(batches(1, SHAPES[0]))
    loss = ms_kernels.NTXentLoss(torch.nn.Parameter(torch.tensor(0.5)))
    for _ in range(3):
        loss(x, y).backward()
    assert all(not kept.spec.weighting.learned for kept in known._known.values())
    assert len(known._known) <= 1
