"""Cross-batch memory against a list of past rows."""

import copy
import warnings

import pytest
import torch
from memories import SIZE, batches, memory_of
from torch import nn

import ms_kernels
from ms_kernels import (
    BinLifted,
    HistogramLoss,
    MultiSimilarity,
    MultiSimilarityLoss,
    NTXentLoss,
    PairLoss,
    TripletLoss,
    Weighting,
    multi_similarity_loss,
)


class Own(Weighting):
    def row_loss(self, similarity, positive, negative):
        return ((similarity * negative).sum(1) - (similarity * positive).sum(1)).exp()


def in_dense_pytorch(loss, x, y, ids, past, weights=(1.0, 1.0)):
    """past: (row, label, id) of the newest rows, those of the batch among them."""
    rows, labels, own = (torch.stack(column) for column in zip(*past, strict=True))
    exact = copy.deepcopy(loss)
    exact.options["backend"] = "reference"
    leaf = x.clone().requires_grad_()
    found = weights[0] * exact(leaf, y, ids=ids)
    found = found + weights[1] * exact(leaf, y, rows, labels, ids=ids, ref_ids=own)
    found.backward()
    return found.detach(), leaf.grad


@pytest.mark.parametrize("size", [20, 7, 3, 1000])
@pytest.mark.parametrize("loss", [MultiSimilarityLoss(), NTXentLoss(), TripletLoss()], ids=str)
@pytest.mark.parametrize("named", [False, True])
def test_the_loss_of_batch_and_memory(loss, size, named):
    """Samples come again: with ids an older copy is no pair, without it is a positive."""
    memory, past = memory_of(loss, size, batch_weight=0.5, memory_weight=2.0), []
    for step, (x, y) in enumerate(batches()):
        ids = (torch.arange(7) + 5 * step) % 17 if named else None
        own = ids if named else 100 + 7 * step + torch.arange(7)
        past += zip(x, y, own, strict=True)
        past = past[-size:]
        want = in_dense_pytorch(loss, x, y, own, past, (0.5, 2.0))
        leaf = x.clone().requires_grad_()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            got = memory(leaf, y, ids)
        got.backward()
        for g, w in zip((got.detach(), leaf.grad), want, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-9, atol=1e-12)
        assert len(memory) == len(past)


def test_rows_are_normalised_once_and_detached():
    memory = memory_of()
    ((x, y),) = batches(1)
    memory(x.requires_grad_(), y)
    assert not memory.ring.rows.requires_grad
    torch.testing.assert_close(memory.ring.rows[:7].norm(dim=1), torch.ones(7).double())
    raw = memory_of(MultiSimilarityLoss(normalize=False))
    raw(x, y)
    assert torch.equal(raw.ring.rows[:7], x.detach())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_dtypes_of_memory_and_batch(dtype, rows):
    memory, past = memory_of(dtype=dtype), []
    for x, y in batches(dtype=rows):
        got = memory(x, y)
        unit = torch.nn.functional.normalize(x.double()).to(dtype).double()
        past += zip(unit, y, strict=True)
        past = past[-SIZE:]
    r, z = (torch.stack(column) for column in zip(*past, strict=True))
    ids = {"ids": torch.arange(7), "ref_ids": torch.arange(-13, 7)}
    want = multi_similarity_loss(x.double(), y)
    want = want + multi_similarity_loss(x.double(), y, r, z, **ids)
    assert got.dtype == rows and memory.ring.rows.dtype == dtype
    tolerance = 1e-5 if dtype == rows == torch.float32 else 2e-2
    torch.testing.assert_close(got.double(), want, rtol=tolerance, atol=tolerance)


def test_more_rows_than_fit_keep_the_newest_and_it_is_said_once():
    memory = memory_of(size=3)
    (x, y), other = batches(2)
    with pytest.warns(UserWarning, match="a batch of 7 rows is more than size=3 holds"):
        memory(x, y)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        memory(*other)
    want = torch.nn.functional.normalize(other[0])[-3:]
    torch.testing.assert_close(
        memory.ring.rows[memory.ring.labels.argsort(stable=True)].sum(0), want.sum(0)
    )


def test_a_row_that_the_memory_cannot_hold_does_not_enter():
    memory = memory_of(MultiSimilarityLoss(normalize=False), dtype=torch.float16)
    (x, y), later = batches(2, dtype=torch.float32)
    x[2] *= 1e6
    memory(x, y)
    assert len(memory) == 6 and memory.ring.rows.isfinite().all()
    assert memory(*later).isfinite()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_does_not_enter(value):
    memory = memory_of()
    (x, y), later = batches(2)
    x[3, 1] = value
    assert memory(x, y).isnan()
    assert len(memory) == 6 and memory.ring.rows.isfinite().all()
    assert memory(*later).isfinite()


def test_another_encoders_rows_enter_and_are_candidates_alone():
    """MoCo: keys enter, queries are anchors; both ways of saying it are one."""
    memories = [memory_of(), memory_of()]
    for (q, y), (k, _) in zip(batches(), batches(seed=1), strict=True):
        q.requires_grad_()
        mask = torch.arange(14) >= 7
        both = memories[0](torch.cat([q, k]), torch.cat([y, y]), enqueue_mask=mask)
        (dq,) = torch.autograd.grad(both, q)
        memories[1].enqueue(k, y)
        memories[1].eval()
        apart = memories[1](q, y)
        (want,) = torch.autograd.grad(apart, q)
        torch.testing.assert_close(both, apart)
        torch.testing.assert_close(dq, want)
        torch.testing.assert_close(memories[0].ring.rows, memories[1].ring.rows)
    assert len(memories[0]) == SIZE


def test_rows_enter_in_training_alone():
    memory = memory_of().eval()
    memory(*next(batches()))
    assert len(memory) == 0
    memory.train()(*next(batches()))
    assert len(memory) == 7
    memory.reset()
    assert len(memory) == 0 and (memory.ring.ids == ms_kernels.IGNORED).all()


def test_a_loss_of_no_weight_is_not_asked(monkeypatch):
    for weights, asked in (((1, 0), "batch"), ((0, 1), "memory")):
        memory = memory_of(batch_weight=weights[0], memory_weight=weights[1])
        real, seen = memory.loss.compute, []

        def compute(tensors, counting, real=real, seen=seen):
            seen.append("batch" if tensors[2] is None else "memory")
            return real(tensors, counting)

        monkeypatch.setattr(memory.loss, "compute", compute)
        memory(*next(batches()))
        assert seen == [asked] and len(memory) == 7


def test_warm_up_is_of_the_batch_alone():
    memory = memory_of(warmup=2)
    for step, (x, y) in enumerate(batches()):
        alone = multi_similarity_loss(x, y)
        got = memory(x, y)
        assert torch.equal(got, alone) == (step < 2)
        assert len(memory) == min(SIZE, 7 * max(0, step - 1))


def test_gradients_of_two_calls_are_added_up():
    """Rows that enter in between must not spoil the first."""
    alpha = nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    for loss in (
        MultiSimilarityLoss(),
        MultiSimilarityLoss(keep_statistics=True),
        PairLoss(MultiSimilarity(alpha)),
        NTXentLoss(alpha),
        HistogramLoss(),
    ):
        memory = memory_of(loss)
        steps = [(x.requires_grad_(), y) for x, y in batches()]
        sum(memory(*step) for step in steps).backward()
        memory = memory_of(loss)
        for x, y in steps:
            (dx,) = torch.autograd.grad(memory(x, y), x)
            torch.testing.assert_close(x.grad, dx)
    memory = memory_of(MultiSimilarityLoss(reduction="none"))  # whose rows are looked at again
    losses = [memory(*step).sum() for step in steps]
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        sum(losses).backward()


@pytest.mark.parametrize("warmup", [0, 3])
def test_compiled_whole_and_once(warmup):
    """While it fills, too, and the state is that of eager calls."""
    torch._dynamo.reset()
    eager, memory = (memory_of(warmup=warmup, dtype=torch.float32) for _ in range(2))
    compiled = torch.compile(memory, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for x, y in batches(dtype=torch.float32):
            found = []
            for run in (eager, compiled):
                leaf = x.clone().requires_grad_()
                loss = run(leaf, y)
                loss.backward()
                found.append((loss.detach(), leaf.grad))
            torch.testing.assert_close(*found)
    for a, b in zip(eager.state_dict().values(), memory.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("name", ["own", "circle", "panels", "dense", "histogram"])
def test_streamed_losses_are_not_compiled(name):
    """Their panels would be computed again in the backward pass, after the rows have entered."""
    loss = {
        "own": lambda: PairLoss(Own()),
        "circle": lambda: PairLoss(ms_kernels.Circle(gamma=nn.Parameter(torch.tensor(2.0)))),
        "panels": lambda: PairLoss(BinLifted(), backend="panels"),
        "dense": lambda: MultiSimilarityLoss(backend="reference"),
        "histogram": lambda: HistogramLoss(ignore_label=1),
    }[name]
    torch._dynamo.reset()
    memory = memory_of(loss())
    compiled = torch.compile(memory, fullgraph=True, backend="aot_eager")
    told = "expected a loss that kernels compute in torch.compile"
    if torch.__version__ < "2.7":  # whose compiler does not say what was raised
        told = "Observed exception|re-raise"
    with pytest.raises(Exception, match=told):
        compiled(*next(batches(1)))


def test_no_copy_of_the_memory_is_kept_for_backward():
    memory = memory_of(size=4096)
    saved = []
    x, y = next(batches())
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        memory(x.requires_grad_(), y)
    assert all(t.numel() <= x.numel() for t in saved)


def test_rows_of_an_ignored_label_do_not_enter():
    memory, plain = memory_of(MultiSimilarityLoss(ignore_label=-1)), memory_of()
    for x, y in batches():
        padded = torch.cat([x, torch.full_like(x, torch.nan)])
        labels = torch.cat([y, torch.full_like(y, -1)])
        torch.testing.assert_close(memory(padded, labels), plain(x, y))
    assert torch.equal(memory.ring.rows, plain.ring.rows)


def test_an_option_that_is_computed_cannot_be_learned_by_a_memory():
    """Its graph is gone after the first backward pass."""
    log = torch.nn.Parameter(torch.tensor(-2.0))
    with pytest.raises(ValueError, match="loss: .* got temperature computed from others"):
        ms_kernels.CrossBatchMemory(NTXentLoss(log.exp()), 5, 8)
    ms_kernels.CrossBatchMemory(NTXentLoss(torch.nn.Parameter(log.detach().exp())), 5, 8)
