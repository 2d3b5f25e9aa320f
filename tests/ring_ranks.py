"""What each process of a group does in test_ring_schedule.py."""

import itertools
import weakref
from pathlib import Path

import learned_options
import ranks
import torch
import torch.distributed as dist
from family import MININGS, WEIGHTINGS, name_of

from bench.processes import joined
from ms_kernels import MultiSimilarityLoss, PairLoss
from ms_kernels.backends import cpu
from ms_kernels.distributed import SCHEDULES, DistributedLoss
from ms_kernels.engine.exchange import Exchange
from ms_kernels.rules.weighting import MultiSimilarity, Triplet

# In all of them but the first the last row has no positive.
SIZES = {2: [(6, 6), (0, 10)], 3: [(4, 3, 6), (8, 0, 2)]}
DTYPES = torch.float32, torch.bfloat16, torch.float16
RULES = [rule for rule in WEIGHTINGS if not isinstance(rule, Triplet)]


def cases(world):
    """{name: (sizes, loss module, options by name of tensor)}: each weighting rule with two mining
    rules, each mining rule with the Multi-Similarity loss."""
    found = {}
    for sizes in SIZES[world]:
        mixed = zip(RULES, itertools.cycle(MININGS[1:]))  # noqa: B905, the second never ends
        pairs = [(rule, MININGS[0]) for rule in RULES] + list(mixed)
        pairs += [(MultiSimilarity(), mining) for mining in MININGS]
        for weighting, mining in pairs:
            name = f"{sizes}-{name_of(weighting)}-{name_of(mining)}"
            found[name] = sizes, PairLoss(weighting, mining, keep_statistics=True), ()
        for reduction in ("sum", "none", "mean_valid"):
            for backend in ("auto", "panels"):
                loss = MultiSimilarityLoss(reduction=reduction, backend=backend)
                found[f"{sizes}-{reduction}-{backend}"] = sizes, loss, ()
        dropped = PairLoss(MultiSimilarity(), max_positive_similarity=0.5, normalize=False)
        found[f"{sizes}-options"] = sizes, dropped, ()
        for distance in ("euclidean", "squared_euclidean"):
            apart = MultiSimilarityLoss(2.0, 5.0, -1.0, distance=distance, normalize=False)
            found[f"{sizes}-{distance}"] = sizes, apart, ()
        every = itertools.cycle(learned_options.MININGS)
        for rule, options in learned_options.OPTIONS:
            if rule is Triplet:
                continue
            for backend, reduction in (("auto", "mean"), ("panels", "none")):
                how = {"backend": backend, "reduction": reduction}
                learns = ranks.learning_rule(rule, options)
                loss = PairLoss(learns, next(every), keep_statistics=backend == "auto", **how)
                found[f"{sizes}-learned-{rule.__name__}-{backend}"] = sizes, loss, ()
        if world == 2:
            for mining in (MININGS[1], MININGS[2]):
                numbers = ranks.learning_rule(MultiSimilarity, learned_options.OPTIONS[0][1])
                for rule in (MultiSimilarity(), numbers):
                    loss = PairLoss(rule, mining, backend="triton")
                    learns = "learned-" if rule.learned else ""
                    found[f"{sizes}-{learns}triton-{name_of(mining)}"] = sizes, loss, ()
        found[f"{sizes}-ids"] = sizes, MultiSimilarityLoss(), ("ids",)
        for reduction in ("none", "mean_valid"):
            loss = MultiSimilarityLoss(ignore_label=1, reduction=reduction)
            names = "ids", "sample_weight", "anchor_mask"
            found[f"{sizes}-counted-{reduction}"] = sizes, loss, names
    return found


def found_by(loss, sizes, names, rank):
    (step,) = ranks.steps(loss, sizes, names, rank)
    module = loss.loss if isinstance(loss, DistributedLoss) else loss
    return (*step, module.statistics if module.keep_statistics else None)


def of_rank(rank, loss, sizes=(6, 5, 5), dtype=torch.float32, schedule="ring"):
    """Loss and gradient of the rows of a rank."""
    x, y, _ = ranks.batch(sizes, dtype=dtype)
    leaf = ranks.part(x, sizes, rank).clone().requires_grad_()
    value = DistributedLoss(loss, schedule=schedule)(leaf, ranks.part(y, sizes, rank))
    value.sum().backward()
    return value.detach(), leaf.grad


class Watched:
    """What a rank sends, gets and holds while a loss is computed, in the order of events."""

    def __init__(self, monkeypatch):
        self.events, self.received, self.gathered, self.visitors = [], [], [], []
        self.held = []  # visiting blocks, while sums are computed
        pass_on, every = Exchange._pass_on, Exchange._all
        statistics, gradient = cpu.block_statistics, cpu.embedding_gradient

        def watched_pass(exchange, given, coming):
            self.received.append([tuple(tensor.shape) for tensor in coming])
            self.visitors.append(weakref.ref(coming[0]))
            self.events.append("pass")
            self.works = pass_on(exchange, given, coming)
            return [self]

        def watched_all(exchange, tensor):
            self.gathered.append(tensor.numel())
            return every(exchange, tensor)

        def told(what, call):
            def tell(*given):
                self.events.append(what)
                self.held.append(sum(visitor() is not None for visitor in self.visitors))
                return call(*given)

            return tell

        monkeypatch.setattr(Exchange, "_pass_on", watched_pass)
        monkeypatch.setattr(Exchange, "_all", watched_all)
        monkeypatch.setattr(cpu, "block_statistics", told("sums", statistics))
        monkeypatch.setattr(cpu, "embedding_gradient", told("gradient", gradient))

    def wait(self):
        self.events.append("wait")
        while self.works:
            self.works.pop().wait()


def held(rank, monkeypatch, reduction):
    """While a loss is computed, and while its derivative is."""
    sizes = (60, 50, 50)
    x, y, _ = ranks.batch(sizes)
    leaf = ranks.part(x, sizes, rank).clone().requires_grad_()
    loss = DistributedLoss(MultiSimilarityLoss(reduction=reduction), schedule="ring")
    with monkeypatch() as patched:
        seen = Watched(patched)
        value = loss(leaf, ranks.part(y, sizes, rank)).sum()
        forward = len(seen.events)
        value.backward()
    parts = seen.events[:forward], seen.events[forward:]
    return {
        "forward": parts[0],
        "backward": parts[1],
        "received": seen.received,
        "gathered": max(seen.gathered),
        "held": seen.held,
    }


def refusals(rank, monkeypatch):
    """What each process hears when one of them errs, by name."""
    heard = {}

    def hear(name, call):
        try:
            call()
        except (RuntimeError, ValueError) as error:
            heard[name] = f"{type(error).__name__}: {error}"

    def fails(*_):
        raise RuntimeError("no memory")

    ms, schedule = MultiSimilarityLoss(), "ring" if rank else "gather"
    hear("schedule", lambda: of_rank(rank, ms, schedule=schedule))
    for name in ("hardest_of_block", "block_statistics", "embedding_gradient"):
        with monkeypatch() as patched:
            if rank == 1:
                patched.setattr(cpu, name, fails)
            hear(name, lambda: of_rank(rank, ms))
    heard["after"] = str(float(of_rank(rank, ms)[0]) >= 0)  # nobody waits for anybody
    return heard


def of_a_row_that_is_not_finite(rank, mining):
    sizes = (4, 4, 4)
    x, y, _ = ranks.batch(sizes)
    x[5, 0] = torch.inf
    each = PairLoss(MultiSimilarity(), mining, reduction="none", keep_statistics=True)
    leaf = ranks.part(x, sizes, rank).clone().requires_grad_()
    value = DistributedLoss(each, schedule="ring")(leaf, ranks.part(y, sizes, rank))
    value.sum().backward()
    return value.detach(), leaf.grad, each.statistics


def in_a_group(rank):
    """Of the last two of three, whose ranks are others in the group."""
    group = dist.new_group([1, 2])
    if rank == 0:
        return None
    x, y, _ = ranks.batch((5, 4))
    x, y = (ranks.part(part, (5, 4), rank - 1) for part in (x, y))
    return DistributedLoss(MultiSimilarityLoss(), group, "ring")(x, y)


def main(rank, world, folder):
    from pytest import MonkeyPatch

    with joined(rank, world, folder):
        found = {
            name: found_by(DistributedLoss(loss, schedule="ring"), sizes, names, rank)
            for name, (sizes, loss, names) in cases(world).items()
        }
        if world == 3:
            for reduction in ("mean", "none"):
                found[f"held-{reduction}"] = held(rank, MonkeyPatch.context, reduction)
            found["again"] = [of_rank(rank, MultiSimilarityLoss()) for _ in range(2)]
            found["refusals"] = refusals(rank, MonkeyPatch.context)
            found["not finite"] = [of_a_row_that_is_not_finite(rank, m) for m in MININGS]
            found["in a group"] = in_a_group(rank)
            for dtype, schedule in itertools.product(DTYPES, SCHEDULES):
                how = {"dtype": dtype, "schedule": schedule}
                found[dtype, schedule] = of_rank(rank, MultiSimilarityLoss(), **how)
        torch.save(found, Path(folder) / f"{rank}.pt")
