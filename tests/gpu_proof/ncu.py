"""Step "ncu": counters of each main kernel, one step of each path. Each has a process of ncu of its
own, so that a run that is cut off keeps the paths before."""

import argparse
import csv
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from gpu_proof.on_cpu import started

from bench import gpu_machine, gpu_report
from bench.gpu_device import REHEARSED, backends
from bench.gpu_kernels import PATHS

# Sections rather than metrics: the names of metrics differ between GPUs.
SECTIONS = ("SpeedOfLight", "ComputeWorkloadAnalysis", "WarpStateStats", "LaunchStats")
OPTIONS = ["--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "raw"]
# torch's own kernels are not what is looked at.
FOREIGN = re.compile(r"\bat::|\bcub::|cutlass|cublas|gemm|elementwise|memcpy|memset", re.IGNORECASE)
TIME, SM = "gpu__time_duration.sum", "sm__throughput.avg.pct_of_peak_sustained_elapsed"
MEMORY = "gpu__compute_memory_throughput.avg.pct_of_peak_sustained_elapsed"
SECONDS = {"nsecond": 1e-9, "usecond": 1e-6, "msecond": 1e-3, "second": 1.0}
SECONDS |= {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0}
KEPT = ("launch__", "sm__warps_active", "smsp__average_warp", "sm__inst_executed_pipe")
MOST_KERNELS = 60


def profiles(text: str) -> list[dict[str, Any]]:
    """The kernels in ncu's CSV, a row each (--page raw) or a row for each metric."""
    lines = [line for line in text.splitlines() if line.startswith('"')]
    table = list(csv.reader(lines))
    if not table:
        return []
    head, *body = table
    if "Metric Name" in head:
        return _by_metric(head, body)
    units = dict(zip(head, body[0], strict=False)) if body and not body[0][0] else {}
    found = []
    for row in body:
        cells = dict(zip(head, row, strict=False))
        if cells.get("ID"):
            metrics = {n: (units.get(n, ""), v) for n, v in cells.items() if "__" in n}
            found.append(_summary(cells["Kernel Name"], metrics))
    return found


def _by_metric(head: list[str], body: list[list[str]]) -> list[dict[str, Any]]:
    kernels: dict[str, tuple[str, dict[str, tuple[str, str]]]] = {}
    for row in body:
        cells = dict(zip(head, row, strict=False))
        _, metrics = kernels.setdefault(cells["ID"], (cells["Kernel Name"], {}))
        metrics[cells["Metric Name"]] = cells["Metric Unit"], cells["Metric Value"]
    return [_summary(name, metrics) for name, metrics in kernels.values()]


def _summary(kernel: str, metrics: dict[str, tuple[str, str]]) -> dict[str, Any]:
    numbers = {
        name: value for name, (_, text) in metrics.items() if (value := _number(text)) is not None
    }
    unit = metrics.get(TIME, ("", ""))[0]
    seconds = numbers[TIME] * SECONDS.get(unit, 1e-9) if TIME in numbers else None
    tensor = [v for n, v in numbers.items() if "pipe_tensor" in n and "pct_of_peak" in n]
    stalls = {
        match[1]: value
        for name, value in numbers.items()
        if (
            match := re.match(
                r"smsp__average_warps?_issue_stalled_(\w+?)(_per_issue_active)?\.ratio$", name
            )
        )
        and not match[1].endswith("_not_issued")
    }
    total = sum(stalls.values()) or 1.0
    return {
        "kernel": kernel,
        "seconds": seconds,
        "sm": numbers.get(SM),
        "memory": numbers.get(MEMORY),
        "tensor": max(tensor) if tensor else None,
        "stalls": sorted(((n, v / total) for n, v in stalls.items()), key=lambda s: -s[1])[:8],
        "counters": {n: v for n, v in numbers.items() if n.startswith(KEPT)},
    }


def _number(text: str) -> float | None:
    try:
        return float(text.replace(",", ""))
    except ValueError:  # n/a: this GPU does not count it
        return None


def command_of(ncu: str, path: str) -> list[str]:
    sections = [word for name in SECTIONS for word in ("--section", name)]
    limit = ["--launch-count", str(MOST_KERNELS)]
    return [ncu, *OPTIONS, *sections, *limit, *started("bench.gpu_kernels"), path]


def main(arguments: list[str]) -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m gpu_proof.ncu", description=__doc__)
    parser.add_argument("--paths", choices=list(PATHS), nargs="+", default=list(PATHS))
    parser.add_argument("--seconds", type=float, help="begin no path later than this")
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines")
    options = parser.parse_args(arguments)
    record = gpu_machine.record(options.results)
    failed, profiled = False, 0
    for path in options.paths:
        if PATHS[path][0] not in backends() and not REHEARSED:
            print(f"{path}: left out, {PATHS[path][0]} is not built")
            continue
        if options.seconds and time.monotonic() - start > options.seconds:
            print(f"{path}: left for want of time")
            continue
        done = subprocess.run(command_of("ncu", path), stdout=subprocess.PIPE, text=True)
        profiled += 1
        kernels = [k for k in profiles(done.stdout) if not FOREIGN.search(k["kernel"])]
        for place, kernel in enumerate(kernels):
            record.add("ncu", (path, place), {"path": path, **kernel})
        print(f"{path}: {len(kernels)} kernels, ncu ended with {done.returncode}", flush=True)
        if done.returncode or not kernels:
            print(done.stdout[-2000:])
            failed = True
    print(gpu_report.counter_table(record.cases("ncu")))
    if not profiled:
        print("FAILED: no path was profiled")
    return int(failed or not profiled)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
