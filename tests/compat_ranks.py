"""What each process of a group does in test_compat_distributed.py: wrapped losses and miners, the
library's own beside ours."""

import os
import sys
from pathlib import Path

import torch
from peer_classes import LOSSES, D, rows
from pytorch_metric_learning import losses as their_losses
from pytorch_metric_learning import miners as their_miners
from pytorch_metric_learning.utils import distributed as their_wrappers
from torch import multiprocessing

from bench.processes import joined
from ms_kernels.compat.pytorch_metric_learning import distributed, losses, miners

NAMES = (
    "MultiSimilarityLoss",
    "ContrastiveLoss",
    "TripletMarginLoss",
    "LiftedStructureLoss",
    "NCALoss",
)
MINERS = (None, "MultiSimilarityMiner", "BatchHardMiner")
FORMS = [
    (name, miner, efficient, refs)
    for name in NAMES
    for miner in MINERS
    for efficient in (False, True)
    for refs in (False, True)
] + [
    ("ContrastiveLoss", miner, efficient, "without labels")
    for miner in MINERS
    for efficient in (False, True)
]
STEPS, LR = 6, 0.2


def here(world, rank, seed, n=16, period=5):
    """Rows and labels of this process, of n in all."""
    return rows(n, seed)[rank::world], (torch.arange(n) % period)[rank::world]


def references(refs, world, rank):
    """Of which some have the labels of the rows of the same number, some others."""
    if refs == "without labels":
        return here(world, rank, 1)[:1]
    return here(world, rank, 1, 24, 7) if refs else ()


def wrapped(ours, name, miner, efficient):
    kinds = (losses, miners, distributed) if ours else (their_losses, their_miners, their_wrappers)
    options = {"strict": True} if ours else {}
    loss = getattr(kinds[0], name)(**LOSSES[name], **options)
    find = None if miner is None else getattr(kinds[1], miner)()
    return (
        kinds[2].DistributedLossWrapper(loss, efficient=efficient),
        None if find is None else kinds[2].DistributedMinerWrapper(find, efficient=efficient),
    )


def one_call(ours, form, world, rank):
    name, miner, efficient, refs = form
    loss, find = wrapped(ours, name, miner, efficient)
    x, y = here(world, rank, 0)
    other = references(refs, world, rank)
    leaves = [side.clone().requires_grad_() for side in (x, *other[:1])]
    given = (*leaves[1:], *other[1:])
    pairs = None if find is None else find(leaves[0], y, *given)
    value = loss(leaves[0], y, pairs, *given)
    value.backward()
    grads = [leaf.grad for leaf in leaves]
    return value.detach(), grads, dict(loss.loss.calls) if ours else None


def memory_steps(ours, miner, world, rank):
    """Of a memory that all processes fill alike."""
    kinds = (losses, miners, distributed) if ours else (their_losses, their_miners, their_wrappers)
    find = None if miner is None else getattr(kinds[1], miner)()
    inner = kinds[0].CrossBatchMemory(kinds[0].MultiSimilarityLoss(beta=10), D, 40, find)
    loss = kinds[2].DistributedLossWrapper(inner)
    found = []
    for step in range(4):
        x, y = here(world, rank, step)
        x.requires_grad_()
        value = loss(x, y)
        value.backward()
        found.append((value.detach(), x.grad))
    return found, dict(inner.loss.calls) if ours else None


def training(ours, world, rank):
    """Parameters after some steps of one model under DistributedDataParallel."""
    torch.manual_seed(7)
    model = torch.nn.Linear(D, 4).double()
    trained = torch.nn.parallel.DistributedDataParallel(model) if world > 1 else model
    sgd = torch.optim.SGD(model.parameters(), lr=LR)
    kinds = (losses, miners, distributed) if ours else (their_losses, their_miners, their_wrappers)
    loss, find = kinds[0].ContrastiveLoss(), kinds[1].PairMarginMiner()
    if world > 1:
        loss = kinds[2].DistributedLossWrapper(loss)
        find = kinds[2].DistributedMinerWrapper(find)
    for step in range(STEPS):
        x, y = here(world, rank, step)
        emb = trained(x)
        sgd.zero_grad()
        loss(emb, y, find(emb, y)).backward()
        sgd.step()
    return [p.detach() for p in model.parameters()]


def main(rank, world, folder):
    with joined(rank, world, folder):
        found = {}
        for form in FORMS:
            found[form] = [one_call(ours, form, world, rank) for ours in (True, False)]
        for miner in MINERS:
            found["memory", miner] = [
                memory_steps(ours, miner, world, rank) for ours in (True, False)
            ]
        found["training"] = [training(ours, world, rank) for ours in (True, False)]
        torch.save(found, Path(folder) / f"{rank}.pt")


def run(world, folder):
    """Of each rank what it found."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    multiprocessing.spawn(main, (world, str(folder)), nprocs=world)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]
