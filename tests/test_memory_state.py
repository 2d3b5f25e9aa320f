"""The state of a cross-batch memory: what it takes to go on, and what must not change it."""

import copy

import pytest
import torch
from memories import D, batches, memory_of

from ms_kernels import CrossBatchMemory, MultiSimilarityLoss


def test_a_resumed_run_is_the_run_that_never_stopped(tmp_path):
    runs = [memory_of(warmup=2, dtype=torch.float32) for _ in range(2)]
    steps = list(batches(dtype=torch.float32))
    for step in steps[:3]:
        runs[0](*step)
    torch.save(runs[0].state_dict(), tmp_path / "memory.pt")
    runs[1].load_state_dict(torch.load(tmp_path / "memory.pt", weights_only=True))
    for x, y in steps[3:]:
        found = []
        for memory in runs:
            leaf = x.clone().requires_grad_()
            loss = memory(leaf, y)
            loss.backward()
            found.append((loss.detach(), leaf.grad))
        assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    for a, b in zip(*(memory.state_dict().values() for memory in runs), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (dict(size=21), r"ring.rows: expected torch.float64 \(21, 5\) as this memory has, got"),
        (dict(dtype=torch.float32), r"expected torch.float32 \(20, 5\) as this memory has, got"),
    ],
)
def test_a_state_of_another_memory_changes_nothing(other, message):
    memory, filled = memory_of(**other), memory_of()
    filled(*next(batches()))
    before = copy.deepcopy(memory.state_dict())
    with pytest.raises(RuntimeError, match=message):
        memory.load_state_dict(filled.state_dict())
    some = filled.state_dict()
    del some["ring.labels"]
    with pytest.raises(RuntimeError, match="ring.labels"):
        memory_of().load_state_dict(some)
    for name, tensor in memory.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize("where", ["batch", "memory"])
@pytest.mark.parametrize("error", [RuntimeError("no memory"), KeyboardInterrupt()], ids=str)
def test_a_loss_that_raises_leaves_the_memory_as_it_was(monkeypatch, where, error):
    memory = memory_of()
    steps = list(batches())
    for step in steps[:4]:
        memory(*step)
    before = copy.deepcopy(memory.state_dict())
    real = memory.loss.compute

    def fails(tensors, counting):
        if (tensors[2] is None) == (where == "batch"):
            raise error
        return real(tensors, counting)

    monkeypatch.setattr(memory.loss, "compute", fails)
    with pytest.raises(type(error)):
        memory(*steps[4])
    for name, tensor in memory.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((torch.zeros(4, 6), torch.zeros(4).long()), r"embeddings: expected shape \(N, 5\)"),
        ((torch.zeros(4, 5), torch.zeros(3).long()), r"labels: expected shape \(4,\)"),
        ((torch.zeros(4, 5), torch.zeros(4)), "labels: expected an integer dtype"),
        ((torch.zeros(4, 5), torch.zeros(4).long(), torch.zeros(3).long()), r"ids: expected shape"),
        (
            (torch.zeros(4, 5), torch.zeros(4).long(), None, torch.zeros(4)),
            "enqueue_mask: expected bool, got torch.float32",
        ),
        (
            (torch.zeros(4, 5, device="meta"), torch.zeros(4, device="meta").long()),
            r"embeddings: expected device cpu as the memory, got meta; use memory.to",
        ),
    ],
    ids=str,
)
def test_bad_input_changes_nothing(given, message):
    memory = memory_of()
    before = copy.deepcopy(memory.state_dict())
    with pytest.raises((TypeError, ValueError), match=message):
        memory(*given)
    for name, tensor in memory.state_dict().items():
        assert torch.equal(tensor, before[name])


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        ((torch.nn.MSELoss(), D, 8), {}, "loss: expected a PairLoss"),
        ((MultiSimilarityLoss(), 0, 8), {}, "embedding_dim: expected a whole number from 1"),
        ((MultiSimilarityLoss(), D, 0), {}, "size: expected a whole number of rows from 1"),
        ((MultiSimilarityLoss(), D, 8), {"dtype": torch.int8}, "dtype: expected one of"),
        ((MultiSimilarityLoss(), D, 8), {"warmup": 2, "batch_weight": 0}, "warmup: expected 0 wit"),
        ((MultiSimilarityLoss(), D, 8), {"batch_weight": 0, "memory_weight": 0}, "one that is not"),
        ((MultiSimilarityLoss(), D, 8), {"warmup": -1}, "warmup: expected a whole number"),
        (
            (MultiSimilarityLoss(), D, 8),
            {"memory_weight": None},
            "memory_weight: expected",
        ),
    ],
    ids=str,
)
def test_bad_options(given, options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        CrossBatchMemory(*given, **options)
