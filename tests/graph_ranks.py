"""What each process of a group does in test_distributed_graphs.py: losses in graphs, and as they
are without."""

import copy
from pathlib import Path

import ranks
import torch
import torch.distributed as dist

from bench.processes import joined
from ms_kernels import (
    CrossBatchMemory,
    HistogramLoss,
    MultiSimilarityLoss,
    NTXentLoss,
    PairLoss,
    TripletLoss,
)
from ms_kernels.api import graph
from ms_kernels.distributed import DistributedLoss

SIZES = (7, 5)
COUNTED = "ids", "sample_weight", "anchor_mask"


def whole():
    """{name: (loss module, options by name of tensor)} of those that a graph holds."""
    learns = MultiSimilarityLoss(reduction="mean_valid", ignore_label=2, keep_statistics=True)
    return {
        "mean": (MultiSimilarityLoss(), ()),
        "sum": (NTXentLoss(reduction="sum"), ()),
        "counted": (learns, COUNTED),
        "triplet": (TripletLoss(), ()),
        "distance": (MultiSimilarityLoss(2.0, 5.0, -1.0, distance="euclidean"), ()),
    }


def broken():
    """Those that a graph breaks at."""
    temperature = torch.nn.Parameter(torch.tensor(0.3))
    return {
        "none": (MultiSimilarityLoss(reduction="none"), ()),
        "learned": (NTXentLoss(temperature), ()),
        "own": (PairLoss(ranks.Own()), ()),
        "histogram": (HistogramLoss(), ()),
        "memory": (CrossBatchMemory(MultiSimilarityLoss(), 4, 9), ()),
    }


def step(loss, names, rank, around=None, dtype=torch.float32, sizes=SIZES):
    """Loss, gradient of a network and of what the loss learns, and the loss without a gradient."""
    torch.manual_seed(0)
    net = torch.nn.Linear(ranks.D, 4, dtype=dtype)
    x, y, _ = ranks.batch(sizes, dtype=dtype)
    x, y = ranks.part(x, sizes, rank), ranks.part(y, sizes, rank)
    options = ranks.options_of(names, sum(sizes))
    options = {name: ranks.part(value, sizes, rank) for name, value in options.items()}

    def run(x, y, **options):
        return loss(net(x), y, **options)

    run = run if around is None else around(run)
    value = run(x, y, **options)
    (3 * value).sum().backward()
    learned = [p.grad for p in loss.parameters()]
    with torch.no_grad():
        again = run(x, y, **options)
    module = loss.loss
    kept = module.statistics if getattr(module, "keep_statistics", False) else ()
    return [value.detach(), again, net.weight.grad, *learned, *kept]


def compiled(fullgraph, backend="aot_eager"):
    def around(run):
        torch._dynamo.reset()
        return torch.compile(run, fullgraph=fullgraph, backend=backend)

    return around


def pair(loss, names, rank, around, schedule="gather", **how):
    """As it is, and in a graph."""
    both = copy.deepcopy(loss), copy.deepcopy(loss)
    plain, in_graph = (DistributedLoss(one, schedule=schedule) for one in both)
    return step(plain, names, rank, **how), step(in_graph, names, rank, around, **how)


def refused(rank, loss, **how):
    try:
        step(DistributedLoss(loss), (), rank, compiled(True), **how)
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def wrong_labels(rank):
    """On one process alone: both hear of it, out of the graph."""
    x, y, _ = ranks.batch((4, 4), dtype=torch.float32)
    run = compiled(True)(DistributedLoss(MultiSimilarityLoss()))
    try:
        run(x[:4], y[: 4 - rank])
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def calls_of_op(rank):
    """How often a step in a graph runs the op, which no graph computes again."""
    seen, real = [], graph.agreed
    graph.agreed = lambda *given: seen.append(given) or real(*given)
    step(DistributedLoss(MultiSimilarityLoss()), (), rank, compiled(True))
    graph.agreed = real
    return len(seen)


def main(rank, world, folder):
    with joined(rank, world, folder):
        found = {}
        for name, (loss, names) in whole().items():
            found[name] = pair(loss, names, rank, compiled(True))
        for name, (loss, names) in broken().items():
            found[name] = pair(loss, names, rank, compiled(False))
        ms = MultiSimilarityLoss()
        found["ring"] = pair(ms, (), rank, compiled(True), "ring")
        found["inductor"] = pair(ms, (), rank, compiled(True, "inductor"))
        found["bfloat16"] = pair(ms, (), rank, compiled(True), dtype=torch.bfloat16)
        found["no rows"] = pair(ms, (), rank, compiled(True), sizes=(12, 0))
        group = dist.new_group([0, 1])
        of_group = DistributedLoss(MultiSimilarityLoss(), group)
        found["group"] = step(of_group, (), rank), step(of_group, (), rank, compiled(True))
        found["refused"] = refused(rank, MultiSimilarityLoss(reduction="none"))
        found["labels"] = wrong_labels(rank)
        found["calls"] = calls_of_op(rank)
        torch.save(found, Path(folder) / f"{rank}.pt")
