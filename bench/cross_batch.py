"""python -m bench memory [quick]: a cross-batch memory against pytorch-metric-learning's, in time
and peak memory of a training step. quick: 4,096 rows and a batch of 64 alone.

Both memories hold the same rows, and losses and gradients are compared before they are timed.
"""

import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

import ms_kernels
from bench.baselines import PEER, Loss
from bench.keep import keep
from bench.memory import printed
from bench.timing import Turns
from bench.versus import refuse_unequal, step_of
from ms_kernels.tools.command_line import check_count
from ms_kernels.tools.step_cost import peak_of

SIZES = (4096, 16384, 65536)
BATCHES = (64, 256)
DEPTH = 128
PER_CLASS = 8
# closeness(128, 0.05) of bench/cases.py, its "mid": worked out there, for its tensors would leave
# pages behind that hide a part of a step's peak.
CLOSENESS = 0.357
ROUNDS = {4096: 25, 16384: 11, 65536: 7}
CHUNK = 64  # rows that fill a memory at a time: small, so that the heap keeps nothing of them

Batch = tuple[Tensor, Tensor]


def stream(size: int, batch: int, seed: int) -> Iterator[Batch]:
    """Batches of new rows, eight of a class; a class comes again after half a memory, so that an
    anchor finds positives among past rows too. Classes are the same whatever the seed."""
    generator = torch.Generator().manual_seed(size)
    classes = max(1, size // (2 * PER_CLASS))
    centres = normalize(torch.randn(classes, DEPTH, generator=generator), dim=1)
    generator.manual_seed(size + seed)
    first = 0
    while True:
        y = (torch.arange(first, first + batch) // PER_CLASS) % classes
        noise = normalize(torch.randn(batch, DEPTH, generator=generator), dim=1)
        yield normalize(CLOSENESS**0.5 * centres[y] + (1 - CLOSENESS) ** 0.5 * noise, dim=1), y
        first += batch


def make_ours(size: int, dtype: torch.dtype = torch.float32) -> ms_kernels.CrossBatchMemory:
    """The peer has no loss of the batch by itself: nor has ours, for its weight is 0."""
    loss = ms_kernels.MultiSimilarityLoss()
    return ms_kernels.CrossBatchMemory(loss, DEPTH, size, dtype=dtype, batch_weight=0.0)


def make_peer(size: int, dtype: torch.dtype = torch.float32) -> Any:
    from pytorch_metric_learning import losses, miners

    loss, miner = losses.MultiSimilarityLoss(2, 50, 0.5), miners.MultiSimilarityMiner(0.1)
    return losses.CrossBatchMemory(loss, DEPTH, memory_size=size, miner=miner).to(dtype)


MAKERS: dict[str, Callable[..., Any]] = {"ours": make_ours, PEER: make_peer}


def fill(memory: Any, rows: Tensor, labels: Tensor) -> None:
    if isinstance(memory, ms_kernels.CrossBatchMemory):
        memory.enqueue(rows, labels)
    else:
        memory.add_to_memory(rows, labels, len(rows))


def full(names: tuple[str, ...], size: int, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Memories of the same rows, as many as they hold."""
    memories = {name: MAKERS[name](size, dtype) for name in names}
    chunks = stream(size, CHUNK, 1)
    for _ in range(0, size, CHUNK):
        x, y = next(chunks)
        for memory in memories.values():
            fill(memory, x.to(dtype), y)
    return memories


def check(size: int, batch: int) -> None:
    """Refuses to time what is not the same: loss and gradient in float64, of two steps, the second
    of which sees the rows of the first."""
    memories = full(("ours", PEER), size, torch.float64)
    batches = stream(size, batch, 2)
    for _ in range(2):
        x, y = next(batches)
        found = (step_of(memory, x, y) for memory in memories.values())
        refuse_unequal(f"memory of {size}, batch of {batch}", *found)


def times(size: int, batch: int, rounds: int) -> dict[str, dict[str, float]]:
    """Medians of rounds in which both take a turn, each round with a batch of new rows."""
    memories: dict[str, Loss] = full(("ours", PEER), size)
    batches = stream(size, batch, 2)
    turns = Turns(*next(batches), with_gradient=True)
    turns.baselines = {PEER: memories[PEER]}
    turns.warm_up(memories["ours"])
    for _ in range(rounds):
        x, turns.y = next(batches)
        turns.x = x.requires_grad_()
        turns.run(PEER, memories[PEER])
        turns.run("ours", memories["ours"])
    return turns.summary()


def kept(size: int, batch: int) -> float:
    """The share of a batch's negatives in the memory that mining keeps."""
    memory = full(("ours",), size)["ours"]
    x, y = next(stream(size, batch, 2))
    rows, labels, _ = memory.ring.candidates()
    stats = ms_kernels.row_statistics(x, y, rows, labels)
    return float(stats.neg_kept.sum()) / float((y[:, None] != labels).sum())


def peak(candidate: str, size: int, batch: int) -> int | None:
    """Resident bytes at the peak of a step in a fresh process; None where it is not known."""
    return printed("bench.cross_batch", candidate, size, batch)


def parse(arguments: list[str]) -> tuple[str, int, int]:
    """Candidate, size and batch of a peak; exits with what was wanted."""
    if len(arguments) != 3:
        sys.exit(
            "bench.cross_batch: expected a candidate, the size of a memory and that of a batch, "
            f"whose peak memory is printed, got {' '.join(arguments) or 'nothing'}; "
            "`python -m bench memory` measures all of them"
        )
    candidate, *numbers = arguments
    if candidate not in MAKERS:
        wanted = ", ".join(MAKERS)
        sys.exit(f"bench.cross_batch: candidate: expected one of {wanted}, got {candidate}")
    names, least = ("size", "batch"), (CHUNK, PER_CLASS)
    size, batch = map(check_count, ("bench.cross_batch",) * 2, names, numbers, least)
    return candidate, size, batch


def print_peak(candidate: str, size: int, batch: int) -> None:
    # Small, or what the heap keeps of it would hide as much of the step that is measured.
    x, y = next(stream(CHUNK, CHUNK, 2))
    full((candidate,), CHUNK)[candidate](x.requires_grad_(), y).backward()
    memory = full((candidate,), size)[candidate]
    x, y = next(stream(size, batch, 2))
    print(json.dumps(peak_of(lambda x: memory(x, y).backward(), x.requires_grad_())))


def measure(sizes: tuple[int, ...], batches: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    jobs = [(size, batch) for size in sizes for batch in batches]
    for size, batch in (progress := tqdm(jobs, desc="memory", unit="case")):
        progress.set_postfix_str(f"{size} rows, batch of {batch}")
        check(size, batch)
        peaks = {name: peak(name, size, batch) for name in MAKERS}
        row = {"size": size, "batch": batch, "kept": kept(size, batch), "bytes": peaks}
        rows.append({**row, "times": times(size, batch, ROUNDS[size])})
    return rows


def run(machine: dict[str, object], quick: bool) -> None:
    from bench import scaling_report

    chosen = (SIZES[:1], BATCHES[:1]) if quick else (SIZES, BATCHES)
    shape = {"d": DEPTH, "per_class": PER_CLASS}
    keep(
        "memory",
        machine,
        quick,
        lambda: {"shape": shape, "memory": measure(*chosen)},
        scaling_report.memory_table,
    )


if __name__ == "__main__":
    print_peak(*parse(sys.argv[1:]))
