"""What each process of a group does in test_distributed.py, and what one process would do.

A case is a function of a rank's rows; one group of processes runs them all.
"""

import os
import sys
from pathlib import Path

import learned_options
import torch
import torch.distributed as dist
from torch import multiprocessing

import ms_kernels
from bench.processes import joined
from ms_kernels import (
    CrossBatchMemory,
    HistogramLoss,
    MultiSimilarity,
    MultiSimilarityMining,
    NoMining,
    PairLoss,
    TopKMining,
)
from ms_kernels.distributed import DistributedLoss
from ms_kernels.engine import exchange
from ms_kernels.rules import weighting as rules

D = 5
SIZES = {2: [(6, 6), (9, 3), (0, 11), (12, 1)], 4: [(5, 5, 5, 5), (7, 0, 4, 1)]}
REDUCTIONS = ("mean", "sum", "none", "mean_valid")
LOSSES = {
    "ms": (MultiSimilarity(), MultiSimilarityMining()),
    "ms_unmined": (MultiSimilarity(2.0, 5.0, 0.3), NoMining()),
    "top_k": (rules.SupCon(0.2), TopKMining(2)),
    **{
        rule.__name__: (rule(), NoMining())
        for rule in (
            rules.Contrastive,
            rules.BinomialDeviance,
            rules.BinLifted,
            rules.LiftedStructure,
            rules.NTXent,
            rules.NCA,
            rules.DecoupledContrastive,
            rules.NPair,
            rules.Circle,
            rules.SigLIP,
            rules.Triplet,
        )
    },
}


# Of which each row's loss is taken too, and a memory.
OF_NONE = (rules.MultiSimilarity, rules.NTXent, rules.Triplet, rules.Circle)


def learning_rule(rule, options):
    """With parameters of its own."""
    numbers = {name: torch.tensor(value).double() for name, value in options.items()}
    return rule(**{name: torch.nn.Parameter(number) for name, number in numbers.items()})


class Own(rules.Weighting):
    def row_loss(self, similarity, positive, negative):
        return (similarity * negative).sum(1) - (similarity * positive).sum(1)


def batch(sizes, seed=0, dtype=torch.float64):
    """Rows, labels and ids of all processes; labels lie apart, so that some rank has no pair."""
    n = sum(sizes)
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, D, generator=generator, dtype=dtype)
    return x, torch.arange(n) // 3, torch.arange(n) % max(1, n - 2)


def part(tensor, sizes, rank):
    first = sum(sizes[:rank])
    return tensor[first : first + sizes[rank]]


def cases(world):
    """{name: (sizes, loss module, options by name of tensor)}"""
    found = {}
    for sizes in SIZES[world]:
        for name, (weighting, mining) in LOSSES.items():
            for reduction in REDUCTIONS if name in ("ms", "Triplet") else ("mean",):
                loss = PairLoss(weighting, mining, reduction=reduction)
                found[f"{sizes}-{name}-{reduction}"] = sizes, loss, ()
        ms = ms_kernels.MultiSimilarityLoss(ignore_label=1, reduction="mean_valid")
        found[f"{sizes}-ids"] = sizes, ms_kernels.MultiSimilarityLoss(), ("ids",)
        found[f"{sizes}-counted"] = sizes, ms, ("sample_weight", "anchor_mask")
        found[f"{sizes}-histogram"] = sizes, HistogramLoss(ignore_label=1), ()
        for reduction in ("mean", "none"):
            how = {"reduction": reduction}
            learns = rules.NTXent(torch.nn.Parameter(torch.tensor(0.3).double()))
            found[f"{sizes}-learned-{reduction}"] = sizes, PairLoss(learns, **how), ()
            found[f"{sizes}-own-{reduction}"] = sizes, PairLoss(Own(), **how), ("sample_weight",)
            dense = ms_kernels.MultiSimilarityLoss(backend="reference", **how)
            found[f"{sizes}-dense-{reduction}"] = sizes, dense, ()
        for rule, options in learned_options.OPTIONS:
            name = f"{sizes}-learned-{rule.__name__}"
            for reduction in ("mean_valid", "none") if rule in OF_NONE else ("mean_valid",):
                how = {"reduction": reduction, "keep_statistics": True}
                loss = PairLoss(learning_rule(rule, options), **how)
                found[f"{name}-{reduction}"] = sizes, loss, ("sample_weight",)
            if rule in OF_NONE:
                loss = PairLoss(learning_rule(rule, options))
                memory = CrossBatchMemory(loss, D, sum(sizes) + 3, dtype=torch.float64)
                found[f"{name}-memory"] = sizes, memory, ("ids",)
        for reduction in ("mean", "none"):
            loss = ms_kernels.MultiSimilarityLoss(reduction=reduction, ignore_label=2)
            memory = CrossBatchMemory(loss, D, sum(sizes) + 3, dtype=torch.float64, warmup=1)
            found[f"{sizes}-memory-{reduction}"] = sizes, memory, ("ids",)
    return found


def options_of(names, n):
    known = {
        "ids": torch.arange(n) % max(1, n - 2),
        "sample_weight": torch.linspace(0.5, 2, n, dtype=torch.float64),
        "anchor_mask": torch.arange(n) % 4 != 1,
    }
    return {name: known[name] for name in names}


def steps(loss, sizes, names, rank=None):
    """Losses and gradients of the rows of a rank, or of all; a memory takes three steps."""
    found = []
    remembers = any(isinstance(module, CrossBatchMemory) for module in loss.modules())
    for step in range(3 if remembers else 1):
        x, y, _ = batch(sizes, step)
        options = options_of(names, len(x))
        if rank is not None:
            x, y = part(x, sizes, rank), part(y, sizes, rank)
            options = {name: part(value, sizes, rank) for name, value in options.items()}
        leaf = x.clone().requires_grad_()
        value = loss(leaf, y, **options)
        # In "none" each row has another worth.
        worth = torch.linspace(1, 2, sum(sizes), dtype=torch.float64)
        if value.ndim:
            (value * (worth if rank is None else part(worth, sizes, rank))).sum().backward()
        else:
            value.backward()
        learned = [p.grad for p in loss.parameters()]
        found.append((value.detach(), leaf.grad, torch.stack(learned) if learned else None))
    return found


def refusals(rank):
    """What each process hears when one of them errs, by name."""
    loss = DistributedLoss(ms_kernels.MultiSimilarityLoss())
    x, y = torch.randn(4, D), torch.arange(4)
    mask = torch.ones(4, dtype=torch.bool)
    each = ms_kernels.MultiSimilarityLoss(reduction="none")
    other = ms_kernels.MultiSimilarityLoss(beta=40.0) if rank else ms_kernels.MultiSimilarityLoss()
    calls = {
        "labels": lambda: loss(x, y[: 4 - rank]),
        "no tensor": lambda: loss(x if rank == 0 else None, y),
        "dimension": lambda: loss(x[:, : D - rank], y),
        "dtype": lambda: loss(x.double() if rank else x, y),
        "options": lambda: DistributedLoss(other)(x, y),
        "ids": lambda: loss(x, y, ids=y if rank else None),
        "memory": lambda: DistributedLoss(CrossBatchMemory(loss.loss, D + rank, 8))(x, y),
        "mask": lambda: DistributedLoss(memory_in(True))(x, y, anchor_mask=mask if rank else None),
        "eval": lambda: DistributedLoss(memory_in(rank == 0))(x, y),
        "weight": lambda: loss(x, y, sample_weight=torch.ones(4, requires_grad=rank == 1)),
        "learned": lambda: DistributedLoss(learning(2.0 + rank))(x, y),
        "learns or not": lambda: DistributedLoss(learning(2.0) if rank else BIN_LIFTED)(x, y),
        "gradient": lambda: DistributedLoss(each)(x.clone().requires_grad_(rank == 0), y),
    }
    heard = {}
    for name, call in calls.items():
        try:
            call()
        except (RuntimeError, ValueError, TypeError) as error:
            heard[name] = f"{type(error).__name__}: {error}"
    heard["after"] = str(float(loss(x, y)) >= 0)  # nobody waits for anybody
    from ms_kernels.backends import cpu

    for name, place, job, of in (
        ("later", cpu, "row_statistics", loss),
        ("last", cpu, "embedding_gradient", loss),
        ("learns", cpu, "learned_gradient", DistributedLoss(learning(2.0))),
        ("whole", Own, "row_loss", DistributedLoss(PairLoss(Own()))),
    ):
        real = getattr(place, job)
        if rank == 1:
            setattr(place, job, fails)
        try:
            of(x.clone().requires_grad_(), y)
        except RuntimeError as error:
            heard[name] = f"{type(error).__name__}: {error}"
        setattr(place, job, real)
    return heard


BIN_LIFTED = PairLoss(ms_kernels.BinLifted(alpha=2.0))


def learning(alpha):
    alpha = torch.nn.Parameter(torch.tensor(alpha))
    return ms_kernels.PairLoss(ms_kernels.BinLifted(alpha=alpha))


def memory_in(training):
    return CrossBatchMemory(ms_kernels.MultiSimilarityLoss(), D, 8).train(training)


def without_gradient(rank):
    """Of triplets, whose gradient is a collective, where one rank has no rows that want one."""
    x, y, _ = batch((6, 6))
    leaf = part(x, (6, 6), rank).clone().requires_grad_(rank == 0)
    loss = DistributedLoss(ms_kernels.TripletLoss())(leaf, part(y, (6, 6), rank))
    if rank == 0:
        loss.backward()
    return loss.detach(), leaf.grad


def of_a_group(rank):
    """Of the first process alone; what the other hears that calls it too."""
    group = dist.new_group([0])
    x, y, _ = batch((6,))
    try:
        return DistributedLoss(ms_kernels.MultiSimilarityLoss(), group)(x, y)
    except ValueError as error:
        return str(error)


def precisions(rank):
    """Of products in the backward pass of each row's loss, after another one was chosen."""
    from ms_kernels.backends import cpu

    seen, real = [], cpu.embedding_gradient
    cpu.embedding_gradient = lambda *a: (
        seen.append(torch.get_float32_matmul_precision()) or real(*a)
    )
    x, y, _ = batch((6, 6), dtype=torch.float32)
    each = ms_kernels.MultiSimilarityLoss(reduction="none")
    leaf = part(x, (6, 6), rank).requires_grad_()
    loss = DistributedLoss(each)(leaf, part(y, (6, 6), rank)).sum()
    torch.set_float32_matmul_precision("medium")
    loss.backward()
    seen.append(torch.get_float32_matmul_precision())
    torch.set_float32_matmul_precision("highest")
    cpu.embedding_gradient = real
    return seen


def fails(*_):
    raise RuntimeError("no memory")


def sent(rank):
    """Collectives of a forward and of a backward pass."""
    seen = []
    places = [(exchange, "_gather_into"), (dist, "all_to_all_single"), (dist, "all_gather_object")]
    real = [getattr(*place) for place in places]
    for (room, name), one in zip(places, real, strict=True):
        setattr(room, name, lambda *a, n=name, f=one, **o: seen.append(n) or f(*a, **o))
    x, y, _ = batch((6, 6))
    leaf = part(x, (6, 6), rank).requires_grad_()
    loss = DistributedLoss(ms_kernels.MultiSimilarityLoss())(leaf, part(y, (6, 6), rank))
    forward = list(seen)
    seen.clear()
    loss.backward()
    for (room, name), one in zip(places, real, strict=True):
        setattr(room, name, one)
    return forward, seen


def main(rank, world, folder):
    with joined(rank, world, folder):
        found = {
            name: steps(DistributedLoss(loss), sizes, names, rank)
            for name, (sizes, loss, names) in cases(world).items()
        }
        if world == 2:
            found["refusals"], found["sent"] = refusals(rank), sent(rank)
            found["without gradient"] = without_gradient(rank)
            found["precisions"] = precisions(rank)
            found["of a group"] = of_a_group(rank)
        torch.save(found, Path(folder) / f"{rank}.pt")


def run(world, folder, main=main):
    """Of each rank what it found."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    multiprocessing.spawn(main, (world, str(folder)), nprocs=world)
    return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]
