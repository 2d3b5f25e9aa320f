"""Cross-batch memory over many steps against pytorch-metric-learning's: losses and queue."""

import copy

import pytest
import torch
from peer_classes import ALONE, LOSSES, MINERS, D, assert_close, miner_pair, ours, rows, theirs
from pytorch_metric_learning import losses as library
from torch.utils._python_dispatch import TorchDispatchMode

from ms_kernels.compat.pytorch_metric_learning import losses, miners

INNER = [name for name in LOSSES if name not in ALONE]
SIZES = (9, 7, 12, 4, 10, 8)  # the queue of 30 wraps in the middle of a batch
MEMORY = 30


def pair(name, miner=None, size=MEMORY):
    mine, their = (None, None) if miner is None else miner_pair(miner)
    loss = ours(name)
    return (
        losses.CrossBatchMemory(loss, D, size, mine),
        library.CrossBatchMemory(theirs(loss), D, size, their),
    )


def batch(step, n):
    generator = torch.Generator().manual_seed(step)
    return rows(n, step), torch.randint(5, (n,), generator=generator)


def run(memory, x, y, *rest, dtype=torch.float64):
    leaf = x.to(dtype, copy=True).requires_grad_()
    value = memory(leaf, y, *rest)
    value.backward()
    return value.detach(), [leaf.grad]


@pytest.mark.parametrize("miner", [None, *MINERS])
@pytest.mark.parametrize("name", INNER)
def test_many_steps(name, miner):
    _, their = pair(name, miner)
    memories = {d: pair(name, miner)[0] for d in (torch.float64, torch.float32, torch.float16)}
    places = {dtype: set() for dtype in memories}
    for step, n in enumerate(SIZES):
        x, y = batch(step, n)
        want = run(their, x, y)
        for dtype, mine in memories.items():
            assert_close(run(mine, x, y, dtype=dtype), want, dtype)
            places[dtype].add((mine.embedding_memory.data_ptr(), mine.label_memory.data_ptr()))
            assert torch.equal(mine.embedding_memory.double(), their.embedding_memory)
            assert torch.equal(mine.label_memory, their.label_memory)
            assert mine.queue_idx == their.queue_idx
            assert mine.has_been_filled == their.has_been_filled
    for dtype, mine in memories.items():
        assert len(places[dtype]) == 1  # it is written into, not copied
        assert mine.loss.calls.total() >= len(SIZES) - 3 and not mine.loss.calls["fallback"]
        if miner is None:
            assert not mine.loss.calls["lists"]


@pytest.mark.parametrize("name", INNER)
def test_an_only_positive_that_is_its_own_copy(name):
    """Theirs mines before it leaves the copy out, so such an anchor mines negatives."""
    mine, their = pair(name, "multi_similarity", 16)
    x = rows(8)
    y = torch.tensor([0, 1, 2, 3, 4, 5, 6, 7]) % 5
    x[4] = x[0] + 0.25 * x[4]  # near a negative
    got = run(mine, x, y)
    assert_close(got, run(their, x, y), torch.float64)


@pytest.mark.parametrize("name", ["MultiSimilarityLoss", "ContrastiveLoss", "TripletMarginLoss"])
@pytest.mark.parametrize("miner", [None, "multi_similarity"])
@pytest.mark.parametrize("four", [True, False], ids=["pairs", "triplets"])
def test_a_tuple_beside_the_memory(name, miner, four):
    mine, their = pair(name, miner)
    outer = miners.MultiSimilarityMiner() if four else miners.TripletMarginMiner()
    for step, n in enumerate(SIZES):
        x, y = batch(step, n)
        if step == 1 and name == "MultiSimilarityLoss":
            # As columns of the memory some are pairs of the other kind, which neither takes.
            for memory in (mine, their):
                with pytest.raises(AssertionError, match="either"):
                    run(memory, x, y, outer(x, y))
            return
        results = [run(memory, x, y, outer(x, y)) for memory in (mine, their)]
        assert_close(*results, torch.float64)
    assert mine.loss.calls == {"lists": len(SIZES)}


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("miner", [None, "multi_similarity"])
def test_rows_that_are_enqueued_and_rows_that_are_not(name, miner):
    """Queries against keys, as of a second encoder: no pair is a row with its copy."""
    mine, their = pair(name, miner)
    for step in range(4):
        x, y = rows(16, step), torch.arange(16) % 4
        x[8:] += x[:8]
        mask = torch.arange(16) >= 8
        results = [run(memory, x, y, None, mask) for memory in (mine, their)]
        assert_close(*results, torch.float64)
    if miner is None:
        assert not mine.loss.calls["lists"]
    with pytest.raises(ValueError, match="mutually exclusive"):
        mine(x, y, (y, y, y, y), mask)


def test_a_batch_whose_backward_pass_comes_after_the_next():
    mine, their = pair("MultiSimilarityLoss")
    for memory in (mine, their):
        memory.leaves = [batch(step, 9)[0].requires_grad_() for step in range(5)]
        values = [memory(x, batch(s, 9)[1]) for s, x in enumerate(memory.leaves)]
        sum(values).backward()
    for x, their_x in zip(mine.leaves, their.leaves, strict=True):
        torch.testing.assert_close(x.grad, their_x.grad, rtol=1e-9, atol=1e-12)


class Copies(TorchDispatchMode):
    """Bytes of the tensors as large as the memory that operations make."""

    bytes = 0

    def __init__(self, least):
        super().__init__()
        self.least = least

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        known = {a.data_ptr() for a in args if isinstance(a, torch.Tensor)}
        if isinstance(found, torch.Tensor) and found.data_ptr() not in known:
            size = found.numel() * found.element_size()
            self.bytes += size if size >= self.least else 0
        return found


def copied(memory, *given):
    """Bytes that an enqueued batch copies, in parts of the memory."""
    size = memory.embedding_memory.numel() * memory.embedding_memory.element_size()
    with Copies(size) as seen:
        memory.add_to_memory(*given, len(given[0]))
    return seen.bytes / size


def filled(name, miner=None):
    mine, their = pair(name, miner, 4096)
    for memory in (mine, their):
        run(memory, *batch(0, 64))
    return mine, their


def test_the_queue_is_not_copied():
    mine, _ = filled("NTXentLoss")
    assert copied(mine, *batch(1, 64)) == 0


def test_a_graph_that_is_still_to_run_keeps_the_queue_as_it_was():
    mine, their = filled("NTXentLoss")
    x, y = batch(1, 64)
    leaf = x.clone().requires_grad_()
    value = mine(leaf, y)
    assert copied(mine, *batch(2, 64)) == 1
    assert copied(mine, *batch(3, 64)) == 0  # nobody holds the copy
    value.backward()
    assert_close((value.detach(), [leaf.grad]), run(their, x, y), torch.float64)


def test_a_tensor_of_the_queue_stays_as_it_was():
    mine, _ = filled("NTXentLoss")
    held = mine.embedding_memory[:128]
    was = held.clone()
    assert copied(mine, *batch(1, 64)) == 1
    assert torch.equal(held, was) and not torch.equal(mine.embedding_memory[:128], was)


def test_a_miner_tells_how_many_it_found_before_others_were_enqueued():
    mine, their = filled("NTXentLoss", "multi_similarity")
    assert copied(mine, *batch(1, 64)) == 1
    assert mine.miner.num_neg_pairs == their.miner.num_neg_pairs > 0
    run(mine, *batch(2, 64))
    before = mine.embedding_memory.data_ptr()
    run(mine, *batch(3, 64))  # in which it mines anew
    assert mine.embedding_memory.data_ptr() == before


def test_state_and_queue():
    mine, their = pair("SupConLoss")
    assert list(mine.state_dict()) == list(their.state_dict())
    run(mine, *batch(0, 9)), run(their, *batch(0, 9))
    mine.load_state_dict(their.state_dict())
    copied = copy.deepcopy(mine)
    want = run(their, *batch(1, 9))
    assert_close(run(mine, *batch(1, 9)), want, torch.float64)
    assert_close(run(copied, *batch(1, 9)), want, torch.float64)
    mine.reset_queue()
    assert mine.queue_idx == 0 and not mine.has_been_filled and not mine.embedding_memory.any()
    assert isinstance(mine, library.CrossBatchMemory) and type(mine).__name__ == "CrossBatchMemory"
    assert mine._record_these == their._record_these
    with pytest.raises(Exception, match="not supported for NPairsLoss"):
        losses.CrossBatchMemory(ours("NPairsLoss"), D)


def test_a_row_alone_is_no_pair_of_its_copy():
    """Theirs keeps it, of a batch of one row alone: docs/compat.md says so."""
    mine, their = pair("MultiSimilarityLoss")
    for memory in (mine, their):
        run(memory, *batch(0, 9))
    x, y = rows(1, 5), torch.tensor([0])
    got, want = run(mine, x, y)[0], run(their, x, y)[0]
    loss, (slots, labels) = ours("MultiSimilarityLoss"), (mine.embedding_memory, mine.label_memory)
    others = loss(x, y, None, slots[:9].double(), labels[:9])
    torch.testing.assert_close(got, others, rtol=1e-9, atol=0)
    assert got < want


@pytest.mark.parametrize("name", ["AngularLoss", "MarginLoss"])
def test_a_loss_of_the_library_in_the_memory(name):
    options = {} if name == "AngularLoss" else {"margin": 0.4}
    mine = losses.CrossBatchMemory(getattr(losses, name)(**options).double(), D, MEMORY)
    their = library.CrossBatchMemory(getattr(library, name)(**options).double(), D, MEMORY)
    for step, n in enumerate(SIZES):
        assert_close(run(mine, *batch(step, n)), run(their, *batch(step, n)), torch.float64)
