"""python -m bench.gpu_latency: where the time of a small step goes, and of a large one by kernel.

Small: the kernels alone (the backend's call in a graph), a whole step in a graph of 20, the nodes
of that graph, eager steps back to back, and the host: a step, its share on the CPU of the calling
thread, the backend's call and, of that, what is compiled. Large: the profiler's time of each kernel
in three regimes. Each case is written as it is found, to --results.
"""

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ms_kernels
from bench import gpu_machine, gpu_report
from bench.cases import REGIMES
from bench.gpu_capture import capture
from bench.gpu_cases import DTYPES, Batch, make_batch, ours_with
from bench.gpu_device import BROKEN, REHEARSED, backends, broken, device, unfit
from bench.gpu_native import native_time
from bench.gpu_record import Case, Record
from bench.gpu_timing import GRAPH_STEPS, Run, Timer, extra, launched, reason, step_of
from ms_kernels.backends.interface import Side
from ms_kernels.rules.spec import PairSpec

SMALL, LARGE = (80, 256, 512, 1024), (4096, 16384)
DEPTH = 16 if REHEARSED else 512
# The driver's queue of launches: the host waits where it is full, and its time would be the GPU's.
QUEUE = 1000
LAUNCHES = {"cuda": 16, "triton": 40}  # of a step at most; what was launched is held against it
PROFILED = 1 if REHEARSED else 3


def module_call(backend: str, batch: Batch) -> Callable[[], object]:
    """The backend's own call, without checks, operators and autograd."""
    module = ms_kernels.backends.dispatch.MODULES[backend]
    side, spec = Side(batch.x, batch.y, None), PairSpec()
    return lambda: module.loss_and_gradient(side, None, spec, True, False)


def calls_of(backend: str) -> int:
    """Calls of the host between two waits, whose launches the queue holds."""
    return 1 if REHEARSED else QUEUE // LAUNCHES.get(backend, QUEUE)


def host_times(step: Run, call: Run, backend: str) -> dict[str, Any]:
    """Seconds of the host for one step, while the device runs behind it.

    "step" is the clock's, backward's thread included; "step_cpu" that of this thread alone, which
    other processes do not lengthen.
    """
    found: dict[str, Any] = {}
    calls = calls_of(backend)
    found["step"], found["step_cpu"] = per_call(step, calls)
    found["module"], found["module_cpu"] = per_call(call, calls)
    if backend == "cuda" or not REHEARSED:  # interpreted kernels and panels have nothing compiled
        extra(found, "native", lambda run: native_time(backend, run, calls), call)
    return found


def raise_lost(found: Case, backend: str) -> None:
    """What was lost within "host" is lost to the case, and so is a figure with waits in it."""
    host = found.get("host", {})
    lost = {f"host.{name}": why for name, why in host.pop("lost", {}).items()}
    launches = sum(kernel["launches"] for kernel in found.get("launched", []))
    if host and not REHEARSED and launches * calls_of(backend) > QUEUE:
        lost["host"] = f"{launches:.0f} launches a step, {calls_of(backend)} steps fill the queue"
    if lost:
        found.setdefault("lost", {}).update(lost)


def per_call(run: Run, calls: int) -> tuple[float, float]:
    """Median over rounds of the clock's and this thread's seconds."""
    wait = device().cuda.synchronize
    rounds = []
    for _ in range(1 if REHEARSED else 7):
        wait()
        clock, thread = time.perf_counter(), time.thread_time()
        for _ in range(calls):
            run()
        rounds.append((time.perf_counter() - clock, time.thread_time() - thread))
        wait()
    clocks, threads = zip(*rounds, strict=True)
    return sorted(clocks)[len(rounds) // 2] / calls, sorted(threads)[len(rounds) // 2] / calls


def small_case(backend: str, dtype: str, n: int, timer: Timer) -> Case:
    batch = make_batch(n, DEPTH, dtype, "mid")
    step = step_of(ours_with(backend), batch.x, batch.y)
    call = module_call(backend, batch)
    for run in (step, call):
        run()
    found: Case = {"graph_steps": GRAPH_STEPS}

    def many() -> None:
        for _ in range(GRAPH_STEPS):
            step()

    extra(found, "host", lambda run: host_times(run, call, backend), step)
    extra(found, "eager", lambda run: timer.gpu(run, GRAPH_STEPS), many)
    extra(found, "launched", lambda run: by_kernel(run, 1), step)
    extra(found, "kernels_alone", timer.graph, call)
    extra(found, "graph", timer.graph, step)
    extra(found, "cold", timer.cold, step)
    extra(found, "nodes", lambda run: nodes_of(timer, run), step)
    raise_lost(found, backend)
    return found


def nodes_of(timer: Timer, run: Run) -> list[str]:
    """What the graph of one run starts when it is replayed: kernels, fills and copies."""
    return [name for name, _ in launched(capture(timer.cuda, run).replay)]


def by_kernel(run: Run, times: int) -> list[dict[str, Any]]:
    """Launches and seconds of each kernel in one run, the longest first."""

    def repeated() -> None:
        for _ in range(times):
            run()

    total: dict[str, tuple[int, float]] = {}
    for name, microseconds in launched(repeated):
        count, spent = total.get(name, (0, 0.0))
        total[name] = (count + 1, spent + microseconds * 1e-6)
    found = [
        {"name": name, "launches": count / times, "seconds": spent / times}
        for name, (count, spent) in total.items()
    ]
    return sorted(found, key=lambda kernel: -float(kernel["seconds"]))


def large_case(backend: str, dtype: str, n: int, regime: str) -> Case:
    batch = make_batch(n, DEPTH, dtype, regime)
    step = step_of(ours_with(backend), batch.x, batch.y)
    step()
    kernels = by_kernel(step, PROFILED)
    return {"kept": batch.kept, "kernels": kernels[:40], "of": len(kernels)}


def works(options: argparse.Namespace) -> list[tuple[str, tuple[Any, ...]]]:
    """CUDA before Triton, whose kernels are compiled where they are first met."""
    dtypes = list(DTYPES)
    found: list[tuple[str, tuple[Any, ...]]] = [
        ("latency", (backend, dtype, n))
        for backend in backends()
        for dtype in dtypes
        for n in options.small
    ]
    # The large path of CUDA is the tiled one; `auto` takes Triton there, so it comes first.
    for dtype, regimes in ((dtypes[0], tuple(REGIMES)), (dtypes[1], ("mid",))):
        for backend in reversed(backends()):
            for n in options.large:
                found += [("kernels", (backend, dtype, n, regime)) for regime in regimes]
    return found


def measure(record: Record, kind: str, key: tuple[Any, ...], timer: Timer) -> bool:
    """Whether it failed."""
    begun = time.monotonic()
    case: Case = {"backend": key[0], "dtype": key[1], "n": key[2], "d": DEPTH}
    if kind == "kernels":
        case["regime"] = key[3]
    try:
        case |= small_case(*key, timer) if kind == "latency" else large_case(*key)
    except Exception as error:  # one case must not cost the others their figures
        case["error"] = reason(error)
    case["seconds"] = round(time.monotonic() - begun, 2)
    record.add(kind, key, case)
    shown = case.get("error") or case.get("lost") or gpu_report.time(case.get("graph"))
    print(f"{kind} {key}, {case['seconds']} s: {shown}", flush=True)
    return "error" in case or "lost" in case


def main(arguments: list[str]) -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_latency", description=__doc__)
    parser.add_argument("--small", type=int, nargs="*", default=list(SMALL))
    parser.add_argument("--large", type=int, nargs="*", default=list(LARGE))
    parser.add_argument("--seconds", type=float, help="begin no case later than this")
    parser.add_argument("--results", type=Path, help="a file of JSON lines")
    options = parser.parse_args(arguments)
    if why := unfit():
        print(f"bench.gpu_latency: {why}")
        return 2
    record = gpu_machine.record(options.results)
    timer = Timer((2, 3), 0.0) if REHEARSED else Timer()
    failed = left = 0
    for kind, key in works(options):
        if record.has(kind, key):
            continue
        if options.seconds and time.monotonic() - start > options.seconds:
            left += 1
            continue
        failed += (wrong := measure(record, kind, key, timer))
        if wrong and broken():
            return BROKEN
        device().cuda.empty_cache()
    print(gpu_report.latency_table(record.cases("latency")))
    print(gpu_report.kernel_table(record.cases("kernels")))
    if left:
        print(f"{left} cases were left for want of time")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
