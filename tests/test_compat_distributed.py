"""Wrapped losses and miners of two processes of gloo against the library's own wrappers."""

import compat_ranks
import pytest
import torch
import torch.distributed as dist
from peer_classes import assert_close, ours, rows

from ms_kernels.compat.pytorch_metric_learning import distributed, losses, miners

pytestmark = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
WORLD = 2


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return compat_ranks.run(WORLD, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("form", compat_ranks.FORMS, ids=str)
def test_one_call(found, form):
    name, miner, efficient, refs = form
    for rank in range(WORLD):
        (value, grads, calls), (want, their_grads, _) = found[rank][form]
        assert_close((value, grads), (want, their_grads), torch.float64)
        assert value > 0 and "fallback" not in calls
        if miner is None and not (efficient and refs == "without labels"):
            # Of references another end may be a row here that has negatives alone.
            streamed = name == "LiftedStructureLoss" and refs and "streamed" in calls
            assert calls == {"streamed" if streamed else "kernels": 1}
    if (name, miner) == ("MultiSimilarityLoss", "MultiSimilarityMiner"):
        # With references of its own efficient=True leaves out pairs i = i, which bound others.
        assert calls == {"lists" if efficient and refs else "kernels": 1}


@pytest.mark.parametrize("miner", compat_ranks.MINERS)
def test_a_memory_of_all(found, miner):
    for rank in range(WORLD):
        (steps, calls), (their, _) = found[rank]["memory", miner]
        for (value, dx), (want, their_dx) in zip(steps, their, strict=True):
            assert_close((value, [dx]), (want, [their_dx]), torch.float64)
        assert "fallback" not in calls and sum(calls.values()) == len(steps)
        if miner in (None, "MultiSimilarityMiner"):
            assert calls == {"kernels": len(steps)}


def test_training_is_that_of_one_process(found):
    """Parameters after some steps, of two processes and of one that has all rows."""
    want = compat_ranks.training(False, 1, 0)
    for rank in range(WORLD):
        mine, their = found[rank]["training"]
        for ours_, theirs_, alone in zip(mine, their, want, strict=True):
            torch.testing.assert_close(ours_, theirs_, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(ours_, alone, rtol=1e-9, atol=1e-12)


def test_without_a_process_group():
    x, y = rows(12), torch.arange(12) % 3
    loss = ours("SupConLoss")
    with pytest.warns(UserWarning, match="non-distributed"):
        found = distributed.DistributedLossWrapper(loss)(x, y)
    assert torch.equal(found, loss(x, y))


def test_what_is_wrapped():
    memory = losses.CrossBatchMemory(ours("SupConLoss"), 6)
    assert distributed.DistributedLossWrapper(memory).loss is memory
    with pytest.raises(ValueError, match="efficient=True"):
        distributed.DistributedLossWrapper(memory, efficient=True)
    with pytest.raises(TypeError, match="BaseMetricLossFunction"):
        distributed.DistributedLossWrapper(torch.nn.Identity())
    with pytest.raises(TypeError, match="BaseMiner"):
        distributed.DistributedMinerWrapper(memory)
    assert isinstance(distributed.DistributedMinerWrapper(miners.HDCMiner()), torch.nn.Module)
    assert distributed.is_distributed() is False  # what is not replaced is the library's
