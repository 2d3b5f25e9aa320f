"""No tensor of all pairs, let alone of positive pairs times negatives: the largest that is made."""

import pytest
import torch
from peer_classes import LOSSES, MINERS, miner_pair, ours
from torch.utils._python_dispatch import TorchDispatchMode

from ms_kernels import options
from ms_kernels.compat.pytorch_metric_learning import losses

N, D, OF_CLASS = 512, 8, 4


class Largest(TorchDispatchMode):
    """Numbers in the largest tensor that an operation returns."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for each in found if isinstance(found, (tuple, list)) else (found,):
            if isinstance(each, torch.Tensor):
                self.most = max(self.most, each.untyped_storage().nbytes() // each.element_size())
        return found


def largest(call):
    with Largest() as seen:
        call()
    return seen.most


def batch(of_class=OF_CLASS):
    generator = torch.Generator().manual_seed(0)
    y = torch.arange(N) // of_class
    centres = torch.randn(N // of_class, D, generator=generator)
    return centres[y] + 0.3 * torch.randn(N, D, generator=generator), y


FUSED = [(name, None) for name in LOSSES] + [
    ("MultiSimilarityLoss", "multi_similarity"),
    ("NTXentLoss", "multi_similarity"),
    ("ContrastiveLoss", "pair_margin"),
    ("TripletMarginLoss", "batch_hard"),
    ("TripletMarginLoss", "triplet_margin"),
]


@pytest.mark.parametrize("of_class", [OF_CLASS, N // 2])
@pytest.mark.parametrize(("name", "miner"), FUSED)
def test_a_step(name, miner, of_class):
    """Of two classes half of all pairs are positive."""
    options.panel_bytes = options.workspace_bytes = N * 4 * 16
    x, y = batch(of_class)
    find = None if miner is None else miner_pair(miner)[0]
    loss = ours(name)

    def step():
        leaf = x.clone().requires_grad_()
        loss(leaf, y, None if find is None else find(leaf, y)).backward()

    assert largest(step) <= N * N // 8
    assert not loss.calls["lists"]


def test_a_memory():
    options.panel_bytes = options.workspace_bytes = N * 4 * 16
    x, y = batch()
    memory = losses.CrossBatchMemory(ours("MultiSimilarityLoss"), D, 4 * N)
    memory(x, y)
    for _ in range(2):
        leaf = x.clone().requires_grad_()
        assert largest(lambda leaf=leaf: memory(leaf, y).backward()) <= N * N // 2


@pytest.mark.parametrize("miner", MINERS)
def test_lists_are_as_long_as_they_are(miner):
    """And what finds them holds a panel."""
    options.panel_bytes = N * 4 * 16
    x, y = batch()
    found = []
    most = largest(lambda: found.append(tuple(miner_pair(miner)[0](x, y))))
    longest = max(len(index) for index in found[0])
    assert most <= max(N * N // 8, 4 * longest)
