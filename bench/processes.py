"""python -m bench distributed [quick]: a training step of DistributedLoss by 1, 2 and 4 processes
of gloo on the cores of this machine, one thread each, by either schedule. quick: 1 and 2 processes,
few rows.

Strong: the rows of the whole stay, and are dealt out. Weak: each process brings as many rows again.
Bytes are those of the tensors that the collectives are given, counted while they are called. Beside
the time of a step stands what a process's threads computed in it: other jobs of the machine, and
waiting for a process that they hold up, are in the first alone.
"""

import contextlib
import datetime
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing
from tqdm import tqdm

import ms_kernels
from bench.cases import make_batch
from bench.check import ROUNDING
from bench.keep import keep
from ms_kernels.distributed import SCHEDULES, DistributedLoss
from ms_kernels.engine import exchange
from ms_kernels.tools.step_cost import peak_of

WORLDS = (1, 2, 4)
STRONG = 4096  # rows of all processes
WEAK = 1024  # rows of each
DEPTH = 128
PASSES = 3  # over all cases, so that a busy minute is not one case's alone
STEPS = 15  # timed in each pass


Case = tuple[int, int, str]


def cases(worlds: tuple[int, ...], strong: int, weak: int) -> list[Case]:
    """Processes, rows of all and schedule, of which one process has none; what is strong and weak
    at once is measured once."""
    sizes = [(world, strong) for world in worlds] + [(world, weak * world) for world in worlds]
    return [
        (world, n, schedule)
        for world, n in dict.fromkeys(sizes)
        for schedule in (SCHEDULES if world > 1 else SCHEDULES[:1])
    ]


@contextlib.contextmanager
def counted() -> Iterator[list[dict[str, Any]]]:
    """What this process gives to each collective, and what it gets of others."""
    seen: list[dict[str, Any]] = []
    places = [(exchange, "_gather_into"), (dist, "all_to_all_single"), (dist, "batch_isend_irecv")]
    real = [getattr(*place) for place in places]

    def watch(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(into: Tensor, given: Tensor, *rest: Any, **options: Any) -> Any:
            world = dist.get_world_size(options.get("group"))
            gives = given.numel() * given.element_size()
            takes = into.numel() * into.element_size()
            # A gathering gives the same to everybody, an exchange to each a part of its own.
            own = gives if name == "_gather_into" else takes // world
            seen.append({"call": name.strip("_"), "given": gives, "received": takes - own})
            return call(into, given, *rest, **options)

        return run

    def watch_passing(_: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def run(messages: list[dist.P2POp]) -> Any:
            ways = (("given", dist.isend), ("received", dist.irecv))
            bytes_of = {
                what: sum(
                    m.tensor.numel() * m.tensor.element_size() for m in messages if m.op is op
                )
                for what, op in ways
            }
            seen.append({"call": "pass_on", **bytes_of})
            return call(messages)

        return run

    for (room, name), call in zip(places, real, strict=True):
        watched = watch_passing if name == "batch_isend_irecv" else watch
        setattr(room, name, watched(name, call))
    try:
        yield seen
    finally:
        for (room, name), call in zip(places, real, strict=True):
            setattr(room, name, call)


@contextlib.contextmanager
def joined(rank: int, world: int, folder: str) -> Iterator[None]:
    """In a group of gloo that meets in a folder, one thread; why it failed is written there."""
    try:
        torch.set_num_threads(1)
        dist.init_process_group(
            "gloo",
            init_method=f"file://{folder}/store",
            rank=rank,
            world_size=world,
            timeout=datetime.timedelta(seconds=120),
        )
        yield
        dist.destroy_process_group()
    except BaseException:
        Path(folder, f"{rank}.txt").write_text(traceback.format_exc())
        raise


def main(rank: int, world: int, steps: int, schedule: str, folder: str) -> None:
    """What each process does: it writes what it found."""
    with joined(rank, world, folder):
        x, y = torch.load(Path(folder, f"rows{rank}.pt"))
        found = of_rank(x.requires_grad_(), y, steps, schedule)
        torch.save(found, Path(folder, f"found{rank}.pt"))


def of_rank(x: Tensor, y: Tensor, steps: int, schedule: str) -> dict[str, Any]:
    loss = DistributedLoss(ms_kernels.MultiSimilarityLoss(), schedule=schedule)

    def step(x: Tensor) -> Tensor:
        value: Tensor = loss(x, y[: len(x)])
        value.backward()  # type: ignore[no-untyped-call]
        return value.detach()

    # Small, or what the heap keeps of it would hide as much of the step that is measured.
    step(x[:16].detach().requires_grad_())
    peak = peak_of(step, x)
    x.grad = None
    with counted() as seen:
        value = loss(x, y)
        forward = len(seen)
        value.backward()
    found = {"loss": value.detach(), "dx": x.grad, "peak": peak}
    found |= {"forward": seen[:forward], "backward": seen[forward:]}
    times, work = [], []
    for _ in range(steps):
        x.grad = None
        dist.barrier()
        start, busy = time.perf_counter(), time.process_time()
        step(x)
        times.append(time.perf_counter() - start)
        work.append(time.process_time() - busy)
    return {**found, "step": statistics.median(times), "work": statistics.median(work)}


def run_case(world: int, n: int, schedule: str, steps: int) -> dict[str, Any]:
    """One spawn of fresh processes: the slowest rank's time, the largest peak, one rank's bytes."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo" if sys.platform == "linux" else "lo0")
    x, y, _ = make_batch(n, DEPTH, "mid")
    with tempfile.TemporaryDirectory() as folder:
        parts = zip(x.chunk(world), y.chunk(world), strict=True)
        for rank, part in enumerate(parts):
            torch.save(tuple(tensor.clone() for tensor in part), Path(folder, f"rows{rank}.pt"))
        multiprocessing.spawn(main, (world, steps, schedule, folder), nprocs=world)
        ranks = [torch.load(Path(folder, f"found{rank}.pt")) for rank in range(world)]
    check(x, y, ranks)
    peaks = [rank["peak"] for rank in ranks if rank["peak"] is not None]
    return {
        "step": max(rank["step"] for rank in ranks),
        "work": max(rank["work"] for rank in ranks),
        "bytes": max(peaks, default=None),
        "forward": ranks[0]["forward"],
        "backward": ranks[0]["backward"],
    }


def check(x: Tensor, y: Tensor, ranks: list[dict[str, Any]]) -> None:
    """Refuses to report what is not the loss of one process that has all rows, in float64."""
    leaf = x.double().requires_grad_()
    loss = ms_kernels.MultiSimilarityLoss()(leaf, y)
    (dx,) = torch.autograd.grad(loss, leaf)
    got, loss = torch.cat([rank["dx"] for rank in ranks]), loss.detach()
    for what, found, want in (("gradient", got, dx), *(("loss", r["loss"], loss) for r in ranks)):
        worst = float((found.double() - want).abs().max())
        allowed = 2 * ROUNDING * float(want.abs().max())
        if not worst <= allowed:  # so put, NaN is refused too
            raise AssertionError(
                f"{len(ranks)} processes: expected the {what} of one within {allowed:.1e}, got "
                f"{worst:.1e} off; not reported"
            )


def measure(
    worlds: tuple[int, ...], strong: int, weak: int, passes: int, steps: int
) -> list[dict[str, Any]]:
    """The median of passes; peaks and bytes are those of the last one."""
    chosen = cases(worlds, strong, weak)
    found: dict[Case, list[dict[str, Any]]] = {case: [] for case in chosen}
    jobs = [case for _ in range(passes) for case in chosen]
    for world, n, schedule in (progress := tqdm(jobs, desc="distributed", unit="run")):
        progress.set_postfix_str(f"{world} processes, {n} rows, {schedule}")
        found[world, n, schedule].append(run_case(world, n, schedule, steps))
    rows = []
    for (world, n, schedule), runs in found.items():
        seen = [run["step"] for run in runs]
        kinds = [k for k, all_rows in (("strong", strong), ("weak", weak * world)) if n == all_rows]
        times = {"step": statistics.median(seen), "low": min(seen), "high": max(seen)}
        times["work"] = statistics.median(run["work"] for run in runs)
        case = {"world": world, "n": n, "schedule": schedule, "kinds": kinds}
        rows.append({**case, **runs[-1], **times})
    return rows


def run(machine: dict[str, object], quick: bool) -> None:
    from bench import scaling_report

    sizes = (WORLDS[:2], 256, 128, 1, 2) if quick else (WORLDS, STRONG, WEAK, PASSES, STEPS)
    keep(
        "distributed",
        {**machine, "threads": 1},
        quick,
        lambda: {"shape": {"d": DEPTH, "per_class": 8}, "distributed": measure(*sizes)},
        scaling_report.distributed_table,
    )
