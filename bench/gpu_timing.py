"""GPU time by events, host time by the clock, graphs of several steps; candidates take turns."""

import statistics
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bench.baselines import Loss
from bench.gpu_capture import capture, why_not_captured
from bench.gpu_device import REHEARSED, Device, device

Run = Callable[[], object]
# One replay of a single step would be timed with the 2 to 4 microseconds of its two events.
GRAPH_STEPS = 2 if REHEARSED else 20
# They replay graphs of their own: a capture around them would be one inside another.
REPLAYING = ("replayed", "autotuned")


class Timer:
    def __init__(self, rounds: tuple[int, int] = (5, 40), seconds: float = 0.25) -> None:
        """rounds: at least, at most; seconds: of the timed rounds of the slowest candidate."""
        self.device: Device = device()
        self.cuda = self.device.cuda
        self.rounds, self.seconds = rounds, seconds
        self.flush = torch.empty(self.device.cold_bytes, dtype=torch.int8, device=self.device.type)

    def gpu(self, run: Run, steps: int = 1) -> float:
        """Seconds a step between two events around a call that finds its inputs outside the caches.

        Of a small batch this is the host's time too, as far as its launches outlast the flush.
        """
        self.flush.zero_()
        start, end = (self.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        self.cuda.synchronize()
        return float(start.elapsed_time(end)) * 1e-3 / steps

    def host(self, run: Run) -> float:
        """Seconds until the call returns, with the device idle before it and not waited for."""
        self.cuda.synchronize()
        start = time.perf_counter()
        run()
        found = time.perf_counter() - start
        self.cuda.synchronize()
        return found

    def graph(self, run: Run) -> float:
        """Median seconds of a step in the replay of a graph that holds several of them."""
        graph = capture(self.cuda, run, GRAPH_STEPS)
        graph.replay()
        return statistics.median(
            self.gpu(graph.replay, GRAPH_STEPS) for _ in range(3 if REHEARSED else 20)
        )

    def cold(self, run: Run) -> float:
        """Median seconds of one step in a graph, whose data and code no cache holds: what it takes
        between the layers of a network, without the host's time."""
        graph = capture(self.cuda, run, 1)
        graph.replay()
        return statistics.median(self.gpu(graph.replay) for _ in range(3 if REHEARSED else 20))

    def peak(self, run: Run) -> int:
        """Bytes at the peak of a call, beyond what was there before it."""
        self.cuda.synchronize()
        self.cuda.empty_cache()
        before = self.cuda.memory_allocated()
        self.cuda.reset_peak_memory_stats()
        run()
        self.cuda.synchronize()
        return int(self.cuda.max_memory_allocated() - before)

    def launches(self, run: Run) -> int:
        return len(launched(run))


def launched(run: Run) -> list[tuple[str, float]]:
    """Name and microseconds of each kernel that a call starts, fills and copies included."""
    here = device()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own, of cycles that it does not keep
        with torch.profiler.profile(activities=here.activities) as profile:
            run()
            here.cuda.synchronize()
    return [
        (event.name, float(event.time_range.elapsed_us()))
        for event in profile.events()
        if event.device_type == here.events
    ]


def step_of(function: Loss, x: Tensor, y: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Loss and gradient of one batch, leaving nothing behind."""
    leaf = x.detach().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        loss = function(leaf, y)
        (dx,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), dx

    return run


def take_turns(
    runs: Mapping[str, Run], timer: Timer, with_graph: bool
) -> dict[str, dict[str, Any]]:
    """Medians, quartiles and the ratio to ours, taken round by round; every run is warm.

    What is measured beside the turns (memory, launches, a graph) says under "lost" why it is not
    there, and costs neither the times nor the other candidates. Graphs come last, ours first: what
    a failed capture leaves behind then meets no other figure.
    """
    gpu: dict[str, list[float]] = {name: [] for name in runs}
    host: dict[str, list[float]] = {name: [] for name in runs}
    slowest = max(timer.gpu(run) for run in runs.values())
    rounds = max(timer.rounds[0], min(timer.rounds[1], int(timer.seconds / max(slowest, 1e-9))))
    names = list(runs)
    for turn in range(rounds):
        # Whoever comes after the slowest finds the host's caches full of it: each in its turn.
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            gpu[name].append(timer.gpu(runs[name]))
            host[name].append(timer.host(runs[name]))
    found: dict[str, dict[str, Any]] = {}
    for name, run in runs.items():
        times = sorted(gpu[name])
        found[name] = {
            "gpu": statistics.median(times),
            "gpu_low": times[len(times) // 4],
            "gpu_high": times[-1 - len(times) // 4],
            "host": statistics.median(host[name]),
            "rounds": rounds,
        }
        if "ours" in runs:
            ratios = [t / o for t, o in zip(gpu[name], gpu["ours"], strict=True)]
            found[name]["ratio"] = statistics.median(ratios)
        extra(found[name], "peak_bytes", timer.peak, run)
        extra(found[name], "launches", timer.launches, run)
    for name, run in runs.items() if with_graph else ():
        why = "it replays a graph of its own" if name in REPLAYING else None
        why = why or why_not_captured(timer.cuda, run)
        if why is None:
            extra(found[name], "graph", timer.graph, run)
        else:
            found[name].setdefault("lost", {})["graph"] = why
    return found


def extra(found: dict[str, Any], name: str, measure: Callable[[Run], Any], run: Run) -> None:
    """The figure, or in its place the reason why there is none."""
    try:
        found[name] = measure(run)
    except Exception as error:  # of a baseline too: the case keeps its other figures
        found.setdefault("lost", {})[name] = reason(error)


def reason(error: Exception) -> str:
    lines = str(error).splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:200]}"
