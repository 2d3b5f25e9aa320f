"""python -m bench.gpu_family [--sizes N ...] [--dry-run]: every member of the family on a GPU.

Each backend that knows the loss takes turns with the others and with pytorch-metric-learning's
class. A candidate is held against panels in float64 before it is timed. Results:
bench/results/<gpu>-family-<date>.json.
"""

import argparse
import datetime
import json
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ms_kernels
from bench import gpu_machine
from bench.baselines import Loss
from bench.family import SIZES, Member, make_batch, members
from bench.family_report import PEER
from bench.gpu_timing import DeviceTimer, DryTimer, Timer, step_of, take_turns

RESULTS = Path(__file__).parent / "results"
BACKENDS = ("cuda", "triton", "panels")  # the first that is built and knows the rule is "ours"
# Off by more, relative to the greatest gradient, it computes something else: mining flips a pair
# within rounding of its threshold, which moves less.
LOOSE = 1e-2


def candidates(member: Member, n: int, device: str) -> dict[str, Loss]:
    """Ours first, then our other backends and the peer."""
    found: dict[str, Loss] = {}
    for backend in BACKENDS:
        if backend not in ms_kernels.dispatch.built(device):
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


def run_case(member: Member, name: str, n: int, device: str, timer: Timer) -> dict[str, Any]:
    x, y = (side.to(device) for side in make_batch(n))
    exact = step_of(member.on("panels"), x.double(), y)()
    runs, skipped, errors = {}, {}, {}
    for candidate, function in candidates(member, n, device).items():
        try:
            errors[candidate] = distance(function, exact, x, y)
        except Exception as error:  # reported, and the others go on
            skipped[candidate] = {"why": f"{type(error).__name__}: {str(error)[:200]}"}
            continue
        if errors[candidate] <= LOOSE:
            runs[candidate] = step_of(function, x, y)
        else:
            skipped[candidate] = {"why": f"off by {errors[candidate]:.1e}"}
    times = take_turns(runs, timer, with_graph=False) if runs else {}
    return {"member": name, "n": n, "errors": errors, "candidates": {**times, **skipped}}


def table(cases: list[dict[str, Any]]) -> str:
    """Markdown: GPU milliseconds of ours, its memory, and the others as multiples."""
    others = [*BACKENDS, PEER]
    lines = [
        "| loss | N | ours | peak | " + " | ".join(others) + " |",
        "|---|--:|--:|--:|" + "--:|" * len(others),
    ]
    for case in cases:
        found = case["candidates"]
        ours, ratios = found.get("ours", {}), []
        for name in others:
            ratio = found.get(name, {}).get("ratio")
            ratios.append("" if ratio is None else f"{ratio:.1f}x")
        time = f"{ours['gpu'] * 1e3:.3f} ms" if "gpu" in ours else ours.get("why", "")
        peak = f"{ours['peak_bytes'] / 2**20:.1f} MiB" if ours.get("peak_bytes") else ""
        lines.append(f"| {case['member']} | {case['n']} | {time} | {peak} | {' | '.join(ratios)} |")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_family", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU: no figures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the file")
    options = parser.parse_args(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("bench.gpu_family: torch sees no CUDA device; --dry-run tries this code without one")
        return 2
    device = "cpu" if options.dry_run else "cuda"
    gpu = "dry" if options.dry_run else torch.cuda.get_device_name()
    timer: Timer = DryTimer() if options.dry_run else DeviceTimer()
    cases, failed = [], False
    stem = f"{gpu.replace(' ', '-')}-family-{datetime.date.today().isoformat()}"
    path = options.results / f"{stem}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    machine = gpu_machine.describe(gpu)
    for name, member in members().items():
        for n in [32] if options.dry_run else options.sizes:
            case = run_case(member, name, n, device, timer)
            ours = [found for who, found in case["candidates"].items() if who != PEER]
            failed |= any("why" in found for found in ours)
            cases.append(case)
            print(json.dumps(case), flush=True)
            path.write_text(json.dumps({"machine": machine, "cases": cases}, indent=1) + "\n")
    print(f"{table(cases)}\nresults: {path}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
