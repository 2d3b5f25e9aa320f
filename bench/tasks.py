"""python -m bench tasks [quick]: a training step of place recognition, CLIP and SigLIP against
dense PyTorch, torch.compile of it and pytorch-metric-learning, in time and peak memory. quick: the
first shape of each.

Each takes what its users have: deep descriptors, in half too, and the share of anchors that mining
keeps, which is logged in every step; rows of two encoders, with a scale and a bias that learn.
"""

import functools
import json
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid, normalize
from tqdm import tqdm

import ms_kernels
from bench.baselines import PEER, has_peer
from bench.cases import make_batch as batch_of_classes
from bench.keep import keep
from bench.memory import printed
from bench.timing import rounds_for
from bench.versus import refuse_unequal, timed
from ms_kernels import reference
from ms_kernels.tools.command_line import check_count
from ms_kernels.tools.step_cost import peak_of

MOST_SECONDS = 5  # of the slowest candidate's turns in one case
SLOW = 10  # seconds of a step: from there on a candidate is timed once
SHALLOW = 128
ALPHA, BETA, BASE, EPSILON = 1.0, 50.0, 0.0, 0.1  # as place recognition trains
SCALE, BIAS = 10.0, -10.0  # where SigLIP's training begins
# Rows, labels, logarithm of the scale and bias to the loss and a number that is logged.
Logged = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]


def our_places(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    loss, statistics = ms_kernels.multi_similarity_loss(
        x, y, alpha=ALPHA, beta=BETA, base=BASE, epsilon=EPSILON, return_statistics=True
    )
    return loss, statistics.active.float().mean()


def dense_places(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    found = reference.row_statistics(x, y, alpha=ALPHA, beta=BETA, base=BASE, epsilon=EPSILON)
    return reference.row_loss(found, ALPHA, BETA).mean(), found.active.float().mean()


@functools.cache
def peer_places() -> Logged:
    from pytorch_metric_learning import losses, miners

    criterion = losses.MultiSimilarityLoss(ALPHA, BETA, BASE)
    miner = miners.MultiSimilarityMiner(EPSILON)

    def run(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
        pairs = miner(x, y)
        mined = torch.zeros(len(x)).index_fill_(0, torch.cat([pairs[0], pairs[2]]), 1)
        return criterion(x, y, pairs), mined.mean()

    return run


def our_clip(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    return ms_kernels.clip_loss(*x.chunk(2), log_scale.exp()), log_scale.detach()


def dense_clip(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    logits = log_scale.exp() * similarities(x)
    own = torch.arange(len(logits))
    return (cross_entropy(logits, own) + cross_entropy(logits.T, own)) / 2, log_scale.detach()


def our_siglip(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    loss = ms_kernels.siglip_loss(*x.chunk(2), log_scale.exp(), bias)
    return loss, log_scale.detach()


def dense_siglip(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
    logits = log_scale.exp() * similarities(x) + bias
    sign = 2 * torch.eye(len(logits), dtype=x.dtype) - 1
    return -logsigmoid(sign * logits).sum() / len(logits), log_scale.detach()


def similarities(x: Tensor) -> Tensor:
    image, text = normalize(x, dim=1).chunk(2)
    return image @ text.T


PLACES = "place recognition"
DENSE = {PLACES: dense_places, "CLIP": dense_clip, "SigLIP": dense_siglip}
OURS = {PLACES: our_places, "CLIP": our_clip, "SigLIP": our_siglip}


class Step(nn.Module):
    """A candidate with what learns beside the rows, and what it logged last."""

    def __init__(self, function: Logged) -> None:
        super().__init__()
        self.function = function
        self.log_scale = nn.Parameter(torch.tensor(SCALE).log())
        self.bias = nn.Parameter(torch.tensor(BIAS))
        self.logged = 0.0

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        loss, logged = self.function(x, y, self.log_scale, self.bias)
        self.logged = float(logged)
        return loss


def compiled(task: str) -> Logged:
    # One graph for each shape, as a training with a fixed batch size has.
    torch._dynamo.config.cache_size_limit = 64
    return torch.compile(DENSE[task], dynamic=False)


def candidates(task: str) -> dict[str, Callable[[], Step]]:
    """Ours first, and how each is made: only who asks for a compiler waits until it is loaded. Of
    images and texts pytorch-metric-learning has no loss."""
    found = {
        "ours": lambda: Step(OURS[task]),
        "dense": lambda: Step(DENSE[task]),
        "compiled": lambda: Step(compiled(task)),
    }
    if task == PLACES and has_peer():
        found[PEER] = lambda: Step(peer_places())
    return found


class Case(NamedTuple):
    task: str
    n: int
    d: int
    dtype: str = "float32"


CHECKED = Case(PLACES, 240, 64)
CASES = (
    *(
        Case(PLACES, n, d, t)
        for n, d in ((240, 4096), (512, 16384))
        for t in ("float32", "float16")
    ),
    *(Case(task, n, 512) for task in ("CLIP", "SigLIP") for n in (512, 2048, 4096)),
)
QUICK = tuple(next(case for case in CASES if case.task == task) for task in OURS)


def make_batch(case: Case, regime: str = "mid") -> tuple[Tensor, Tensor]:
    """Places of which mining keeps what it does at that moment of a training: rows of few numbers,
    over again up to the depth, so that cosines stay. Of images and texts, whose cosine is about
    0.7, the images come first; they have no labels."""
    if case.task == PLACES:
        shallow, y, _ = batch_of_classes(case.n, min(case.d, SHALLOW), regime)
        x = shallow.repeat(1, -(-case.d // SHALLOW))[:, : case.d]
    else:
        generator = torch.Generator().manual_seed(case.n)
        image, noise = (
            normalize(torch.randn(case.n, case.d, generator=generator), dim=1) for _ in range(2)
        )
        x, y = torch.cat([image, normalize(image + noise, dim=1)]), torch.arange(case.n)
    return x.to(getattr(torch, case.dtype)).contiguous(), y


def check(task: str) -> None:
    """Refuses to time what is not the same in float64: losses, what is logged, and gradients of the
    rows and of what learns."""
    x, y = make_batch(CHECKED._replace(task=task), "late")  # when not every anchor keeps a pair
    found = {}
    for name, made in candidates(task).items():
        leaf, step = x.double().requires_grad_(), made().double()
        loss = step(leaf, y)
        loss.backward()
        learned = [p.grad for p in step.parameters() if p.grad is not None]
        found[name] = step.logged, loss.detach(), [leaf.grad, *learned]
    logged, loss, gradients = found.pop("ours")
    for name, (their_logged, their_loss, their_gradients) in found.items():
        if abs(logged - their_logged) > 1e-6:
            raise AssertionError(
                f"{task}, {name}: expected {their_logged} to be logged, got {logged}; not timed"
            )
        for one, other in zip(gradients, their_gradients, strict=True):
            refuse_unequal(f"{task}, {name}", (loss, one), (their_loss, other))


class Cost(NamedTuple):
    """Of one step in a fresh process."""

    bytes: int | None
    seconds: float


def times(case: Case, alone: dict[str, Cost]) -> dict[str, Any]:
    """Medians of interleaved rounds of each candidate. The slow take no turns: of them the step is
    given that was seen alone, for a CPU takes half a minute over products of half rows."""
    slow = {name: cost.seconds for name, cost in alone.items() if cost.seconds > SLOW}
    slow.pop("ours", None)
    made = candidates(case.task).items()
    others = {name: make() for name, make in made if name not in slow}
    ours = others.pop("ours")
    found = timed(*make_batch(case), ours, others, rounds_for(case.n), MOST_SECONDS)
    for name, seconds in slow.items():
        ratio = seconds / found["ours"]["step"]
        found[name] = {"step": seconds, "ratio": ratio, "rounds": 1}
    return found


def parse(arguments: list[str]) -> tuple[str, Case]:
    """Candidate and case of a cost; exits with what was wanted."""
    if len(arguments) != 5:
        sys.exit(
            "bench.tasks: expected a candidate, a task, N, D and a dtype, whose peak memory "
            f"and seconds are printed, got {' '.join(arguments) or 'nothing'}; "
            "`python -m bench tasks` measures all of them"
        )
    name, task, n, d, dtype = arguments
    chosen = (("task", task, list(OURS)), ("dtype", dtype, ["float32", "float16", "bfloat16"]))
    for option, got, wanted in chosen:
        if got not in wanted:
            sys.exit(f"bench.tasks: {option}: expected one of {', '.join(wanted)}, got {got}")
    if name not in candidates(task):
        known = ", ".join(candidates(task))
        sys.exit(f"bench.tasks: candidate: expected one of {known}, got {name}")
    rows, depth = (check_count("bench.tasks", *given) for given in (("N", n), ("D", d)))
    return name, Case(task, rows, depth, dtype)


def print_cost(name: str, case: Case) -> None:
    function = candidates(case.task)[name]()
    seconds = 0.0

    def step(x: Tensor, y: Tensor) -> None:
        nonlocal seconds
        start = time.perf_counter()
        function(x, y).backward()
        seconds = time.perf_counter() - start

    # Small, or what the heap keeps of it would hide as much of the step that is measured; but
    # compiling, which is for one size, is no step.
    small = case if name == "compiled" else case._replace(n=64)
    first, labels = make_batch(small)
    step(first.requires_grad_(), labels)
    x, y = make_batch(case)
    peak = peak_of(lambda x: step(x, y), x.requires_grad_())
    if peak is None:  # it has looked at nothing, where no peak is known
        step(x, y)
    print(json.dumps(Cost(peak, seconds)))


def measure(cases: tuple[Case, ...]) -> list[dict[str, Any]]:
    for task in {case.task: None for case in cases}:
        check(task)
    rows = []
    for case in (progress := tqdm(cases, desc="tasks", unit="case")):
        progress.set_postfix_str(" ".join(map(str, case)))
        alone = {n: Cost(*printed("bench.tasks", n, *case)) for n in candidates(case.task)}
        peaks = {name: cost.bytes for name, cost in alone.items()}
        rows.append({**case._asdict(), "bytes": peaks, "times": times(case, alone)})
    return rows


def run(machine: dict[str, object], quick: bool) -> None:
    from bench import tasks_report

    found = functools.partial(measure, QUICK if quick else CASES)
    keep("tasks", machine, quick, lambda: {"tasks": found()}, tasks_report.table)
    if not quick:
        print("\npage: docs/benchmark_family.md")


if __name__ == "__main__":
    print_cost(*parse(sys.argv[1:]))
