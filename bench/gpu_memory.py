"""python -m bench.gpu_memory [--sizes M ...]: a cross-batch memory on a GPU.

Memories of bfloat16 and float32 rows, full, at a batch of 1,024; pytorch-metric-learning's takes
turns with ours where its N x M arrays fit. Losses are held against each other before they are
timed. Results: lines of kind "memory" of bench/gpu_record.py in --results. MSK_REHEARSAL=1 tries
this code without a GPU.
"""

import argparse
import itertools
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import gpu_machine, gpu_report
from bench.baselines import PEER, has_peer
from bench.cross_batch import DEPTH, MAKERS, fill, stream
from bench.gpu_cases import DTYPES
from bench.gpu_device import BROKEN, REHEARSED, broken, device, unfit
from bench.gpu_timing import Run, Timer, reason, step_of, take_turns

SIZES = (64, 128) if REHEARSED else (65536, 1 << 20)
BATCH = 16 if REHEARSED else 1024
CHUNK = 64 if REHEARSED else 65536
# Off by more, the peer computes something else.
LOOSE = {"float32": 1e-2, "bfloat16": 0.2}


def full(name: str, size: int, dtype: torch.dtype) -> Any:
    """A memory that is filled."""
    memory = MAKERS[name](size, dtype).to(device().type)
    chunks = stream(size, CHUNK, 1)
    for _ in range(0, size, CHUNK):
        x, y = (t.to(device().type) for t in next(chunks))
        fill(memory, x.to(dtype), y)
    return memory


def run_case(size: int, dtype: str, timer: Timer) -> dict[str, Any]:
    """The peer is timed where it does not run out of memory and finds what ours finds."""
    x, y = (t.to(device().type) for t in next(stream(size, BATCH, 2)))
    x = x.to(DTYPES[dtype])
    ours = step_of(full("ours", size, DTYPES[dtype]), x, y)
    runs: dict[str, Run] = {"ours": ours}
    want, errors, skipped = ours(), {}, {}
    if has_peer():
        run = step_of(full(PEER, size, DTYPES[dtype]), x, y)
        try:
            errors[PEER] = distance(run(), want)
        except torch.OutOfMemoryError:
            skipped[PEER] = {"why": "out of memory"}
        else:
            if errors[PEER] <= LOOSE[dtype]:
                runs[PEER] = run
            else:
                skipped[PEER] = {"why": f"off by {errors[PEER]:.1e}"}
    times = take_turns(runs, timer, with_graph=False)
    case = {"n": BATCH, "m": size, "d": DEPTH, "dtype": dtype, "errors": errors}
    return {**case, "candidates": {**times, **skipped}}


def distance(got: tuple[Tensor, Tensor], want: tuple[Tensor, Tensor]) -> float:
    """Of a loss and a gradient from ours, relative to the greatest of each."""
    parts = zip(got, want, strict=True)
    return max(float((g - w).abs().max() / w.abs().max().clamp(min=1e-30)) for g, w in parts)


def main(arguments: list[str]) -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_memory", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seconds", type=float, help="begin no case later than this")
    parser.add_argument("--results", type=Path, help="a file of JSON lines")
    options = parser.parse_args(arguments)
    if why := unfit():
        print(f"bench.gpu_memory: {why}")
        return 2
    record = gpu_machine.record(options.results)
    timer = Timer((2, 3), 0.0) if REHEARSED else Timer()
    failed = False
    for dtype, size in itertools.product(DTYPES, options.sizes):
        key = dtype, size
        if record.has("memory", key):
            continue
        if options.seconds and time.monotonic() - start > options.seconds:
            print(f"{size} {dtype}: left for want of time")
            continue
        try:
            case = run_case(size, dtype, timer)
        except Exception as error:  # one case must not cost the others their figures
            case = {"m": size, "n": BATCH, "dtype": dtype, "error": reason(error), "candidates": {}}
        record.add("memory", key, case)
        print(f"{size} {dtype}: {gpu_report.line(case)}", flush=True)
        failed |= "error" in case
        if "error" in case and broken():
            return BROKEN
        device().cuda.empty_cache()
    print(gpu_report.memory_table(record.cases("memory")))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
