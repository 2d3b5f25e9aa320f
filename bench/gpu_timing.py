"""GPU time by events, host time by the clock, graph replay; candidates take turns."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import Protocol

import torch
from torch import Tensor

from bench.baselines import Loss

FLUSHED_BYTES = 256 << 20  # several times the L2 cache of any GPU
MOST_SECONDS = 0.5  # of the timed rounds of the slowest candidate
# They ask the device for sizes: not to be captured, and a failed capture would linger.
WAITING = ("metric_learning",)


class Timer(Protocol):
    """How a call is timed; the dry run has one that needs no GPU."""

    rounds: tuple[int, int]  # at least, at most

    def gpu(self, run: Callable[[], object]) -> float: ...
    def host(self, run: Callable[[], object]) -> float: ...
    def graph(self, run: Callable[[], object]) -> float | None: ...
    def peak(self, run: Callable[[], object]) -> int | None: ...
    def launches(self, run: Callable[[], object]) -> int | None: ...


class DeviceTimer:
    rounds = (5, 40)

    def __init__(self) -> None:
        self.flushed = torch.empty(FLUSHED_BYTES, dtype=torch.int8, device="cuda")

    def gpu(self, run: Callable[[], object]) -> float:
        """Seconds between two events around a call that finds its inputs outside the L2 cache.

        Of a small batch this is the host's time too, as far as its launches outlast the flush.
        """
        self.flushed.zero_()
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) * 1e-3

    def host(self, run: Callable[[], object]) -> float:
        """Seconds until the call returns, with the device idle before it and not waited for."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        found = time.perf_counter() - start
        torch.cuda.synchronize()
        return found

    def graph(self, run: Callable[[], object]) -> float | None:
        """Median seconds of a replay; None where the call cannot be captured."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                run()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph):
                run()
        except RuntimeError:  # it waits for the device
            torch.cuda.synchronize()
            return None
        graph.replay()
        return statistics.median(self.gpu(graph.replay) for _ in range(30))

    def peak(self, run: Callable[[], object]) -> int:
        """Bytes at the peak of a call, beyond what was there before it."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def launches(self, run: Callable[[], object]) -> int:
        return len(launched(run))


def launched(run: Callable[[], object]) -> list[str]:
    """Names of the kernels that a call starts, fills and copies included."""
    kinds = [torch.profiler.ProfilerActivity.CUDA, torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=kinds) as profile:
        run()
        torch.cuda.synchronize()
    on_device = torch.autograd.DeviceType.CUDA
    return [event.name for event in profile.events() if event.device_type == on_device]


class DryTimer:
    """The clock of the host for all three: for tests of this code, never for figures."""

    rounds = (2, 2)

    def gpu(self, run: Callable[[], object]) -> float:
        start = time.perf_counter()
        run()
        return time.perf_counter() - start

    host = gpu
    graph = gpu

    def peak(self, run: Callable[[], object]) -> None:
        run()

    launches = peak


def step_of(function: Loss, x: Tensor, y: Tensor) -> Callable[[], tuple[Tensor, Tensor]]:
    """Loss and gradient of one batch, leaving nothing behind."""
    leaf = x.detach().requires_grad_()

    def run() -> tuple[Tensor, Tensor]:
        loss = function(leaf, y)
        (dx,) = torch.autograd.grad(loss, leaf)
        return loss.detach(), dx

    return run


def take_turns(
    runs: Mapping[str, Callable[[], object]], timer: Timer, with_graph: bool
) -> dict[str, dict[str, float | int | None]]:
    """Medians, quartiles and the ratio to ours, taken round by round; every run is warm."""
    gpu: dict[str, list[float]] = {name: [] for name in runs}
    host: dict[str, list[float]] = {name: [] for name in runs}
    slowest = max(timer.gpu(run) for run in runs.values())
    rounds = max(timer.rounds[0], min(timer.rounds[1], int(MOST_SECONDS / max(slowest, 1e-9))))
    for _ in range(rounds):
        for name, run in runs.items():
            gpu[name].append(timer.gpu(run))
            host[name].append(timer.host(run))
    found: dict[str, dict[str, float | int | None]] = {}
    for name in runs:
        times = sorted(gpu[name])
        found[name] = {
            "gpu": statistics.median(times),
            "gpu_low": times[len(times) // 4],
            "gpu_high": times[-1 - len(times) // 4],
            "host": statistics.median(host[name]),
            "graph": timer.graph(runs[name]) if with_graph and name not in WAITING else None,
            "peak_bytes": timer.peak(runs[name]),
            "launches": timer.launches(runs[name]),
            "rounds": rounds,
        }
        if "ours" in runs:
            ratios = [t / o for t, o in zip(gpu[name], gpu["ours"], strict=True)]
            found[name]["ratio"] = statistics.median(ratios)
    return found
