"""python -m bench.gpu_family [--losses NAME ...] [--sizes N ...]: the family's members on a GPU.

Each backend that knows the loss takes turns with the others and with pytorch-metric-learning's
class. A candidate is held against panels in float64 before it is timed. Results: lines of kind
"family" of bench/gpu_record.py in --results. MSK_REHEARSAL=1 tries this code without a GPU.
"""

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ms_kernels
from bench import gpu_machine, gpu_report
from bench.baselines import PEER, Loss
from bench.family import SIZES, Member, make_batch, members
from bench.gpu_device import BROKEN, REHEARSED, broken, device, unfit
from bench.gpu_timing import Timer, reason, step_of, take_turns

BACKENDS = ("cuda", "triton", "panels")  # the first that is built and knows the rule is "ours"
# Off by more, relative to the greatest gradient, it computes something else: mining flips a pair
# within rounding of its threshold, which moves less.
LOOSE = 1e-2


def candidates(member: Member, n: int) -> dict[str, Loss]:
    """Ours first, then our other backends and the peer."""
    found: dict[str, Loss] = {}
    for backend in BACKENDS:
        if backend not in ms_kernels.backends.dispatch.built():
            continue
        try:
            found["ours" if not found else backend] = member.on(backend)
        except ValueError:  # its kernels do not know the rule
            continue
    if member.peer is not None and n <= member.most:
        found[PEER] = member.peer
    return found


def distance(run: Loss, exact: tuple[Tensor, Tensor], x: Tensor, y: Tensor) -> float:
    """Of loss and gradient from the exact ones, relative to the greatest of each."""
    parts = zip(step_of(run, x, y)(), exact, strict=True)
    errors = [
        (got.double() - want).abs().max() / want.abs().max().clamp(min=1e-30) for got, want in parts
    ]
    return float(torch.stack(errors).amax())  # NaN if one of them is


def run_case(member: Member, name: str, n: int, timer: Timer) -> dict[str, Any]:
    x, y = (side.to(device().type) for side in make_batch(n))
    exact = step_of(member.on("panels"), x.double(), y)()
    runs, skipped, errors = {}, {}, {}
    for candidate, function in candidates(member, n).items():
        try:
            errors[candidate] = distance(function, exact, x, y)
        except Exception as error:  # reported, and the others go on
            if broken():
                raise
            skipped[candidate] = {"why": reason(error)}
            continue
        if errors[candidate] <= LOOSE:
            runs[candidate] = step_of(function, x, y)
        else:
            skipped[candidate] = {"why": f"off by {errors[candidate]:.1e}"}
    times = take_turns(runs, timer, with_graph=False) if runs else {}
    return {"member": name, "n": n, "errors": errors, "candidates": {**times, **skipped}}


def main(arguments: list[str]) -> int:
    start = time.monotonic()
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_family", description=__doc__)
    parser.add_argument("--losses", nargs="+", choices=members(), default=list(members()))
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--seconds", type=float, help="begin no case later than this")
    parser.add_argument("--results", type=Path, help="a file of JSON lines")
    options = parser.parse_args(arguments)
    if why := unfit():
        print(f"bench.gpu_family: {why}")
        return 2
    record = gpu_machine.record(options.results)
    timer = Timer((2, 3), 0.0) if REHEARSED else Timer()
    failed = False
    works = [(name, n) for name in options.losses for n in options.sizes]
    for name, n in works:
        if record.has("family", (name, n)):
            continue
        if options.seconds and time.monotonic() - start > options.seconds:
            print(f"{name} {n}: left for want of time")
            continue
        try:
            case = run_case(members()[name], name, n, timer)
        except Exception as error:  # one case must not cost the others their figures
            case = {"member": name, "n": n, "error": reason(error), "candidates": {}}
        ours = [found for who, found in case["candidates"].items() if who != PEER]
        wrong = "error" in case or any("why" in found for found in ours)
        failed |= wrong
        record.add("family", (name, n), case)
        print(f"{name} {n}: {gpu_report.line(case)}", flush=True)
        if wrong and broken():
            return BROKEN
    print(gpu_report.family_table(record.cases("family")))
    print(f"results: {record.path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
