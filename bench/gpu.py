"""python -m bench.gpu [quick|small]: a step on a GPU against its floors and what others use.

quick and full measure the Triton kernels; small measures the CUDA C++ kernels, where they are
built, at the sizes at which launches are the cost.

Memory rule: a candidate runs where its bytes for each pair (gpu_floor.BYTES_PER_PAIR), times N
squared, stay within 80% of the device's memory. Results: bench/results/<gpu>-<date>.json and .log;
cases of the same commit, versions and GPU are added to the file of the day.
"""

import argparse
import datetime
import functools
import importlib.util
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch

import ms_kernels
from bench import gpu_floor, gpu_machine
from bench.cases import REGIMES
from bench.gpu_cases import DTYPES, Batch, Judge, candidates, check_rows, make_batch
from bench.gpu_floor import Rate, fits, floor_of
from bench.gpu_timing import DeviceTimer, DryTimer, Timer, step_of, take_turns
from ms_kernels.backends.interface import Side
from ms_kernels.spec import MultiSimilaritySpec

RESULTS = Path(__file__).parent / "results"
HUGE = (1 << 20, 128, "bfloat16", "mid")
MOST_IN_GRAPH = 1024


class Setting:
    """Where the cases run, and what they are held against."""

    def __init__(self, dry: bool, rate: Rate, small: bool = False) -> None:
        self.rate = rate
        self.device = "cpu" if dry else "cuda"
        by_cuda = small and "cuda" in ms_kernels.dispatch.built()
        self.backend = "panels" if dry else "cuda" if by_cuda else "triton"
        self.timer: Timer = DryTimer() if dry else DeviceTimer()
        self.memory = 2**33 if dry else torch.cuda.get_device_properties(0).total_memory
        known = importlib.util.find_spec("pytorch_metric_learning") is not None
        self.candidates = candidates(self.backend, "eager" if dry else "inductor", known, small)


def run_case(setting: Setting, n: int, d: int, dtype: str, regime: str) -> dict[str, Any]:
    """Checks, then times; a candidate that is not timed says why."""
    batch = make_batch(n, d, dtype, regime, setting.device, setting.backend)
    judge = Judge(batch, fits("dense", n, setting.memory))
    runs, skipped = {}, {}
    for name, function in setting.candidates.items():
        if not fits(name, n, setting.memory):
            skipped[name] = {"why": "memory"}
            continue
        run = step_of(function, batch.x, batch.y)
        try:
            refusal = judge.refusal(name, run())
        except Exception as error:  # of a baseline or of ours: reported, and the others go on
            refusal = f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        if refusal is None:
            runs[name] = run
        else:
            skipped[name] = {"why": "refused", "refusal": refusal}
    errors = {"same_dtype": judge.same}
    del judge
    found: dict[str, Any] = take_turns(runs, setting.timer, n <= MOST_IN_GRAPH) if runs else {}
    return {
        **{"n": n, "d": d, "dtype": dtype, "regime": regime, "kept": batch.kept},
        "backend": setting.backend,
        "floor": floor_of(n, d, dtype, setting.rate)._asdict(),
        "errors": errors,
        "candidates": {**found, **skipped},
    }


def run_huge(setting: Setting, n: int, d: int, dtype: str, regime: str) -> dict[str, Any]:
    """Ours alone; the oracle sees 64 anchors, since all pairs in float64 would take minutes."""
    batch = make_batch(n, d, dtype, regime, setting.device, setting.backend)
    refusal = check_rows(batch, functools.partial(_row_losses, batch, setting.backend))
    run = step_of(setting.candidates["ours"], batch.x, batch.y)
    found: dict[str, Any]
    if refusal is None:
        run()
        found = take_turns({"ours": run}, setting.timer, False)
    else:
        found = {"ours": {"why": "refused", "refusal": refusal}}
    return {
        **{"n": n, "d": d, "dtype": dtype, "regime": regime, "kept": batch.kept},
        "backend": setting.backend,
        "floor": floor_of(n, d, dtype, setting.rate)._asdict(),
        "checked": "row losses of 64 anchors",
        "candidates": found,
    }


def _row_losses(batch: Batch, backend: str) -> torch.Tensor:
    """As the step computes them: of the call that makes the gradient too."""
    module = ms_kernels.dispatch.load(backend)
    side = Side(batch.x, batch.y, None)
    losses: torch.Tensor = module.loss_and_gradient(side, None, MultiSimilaritySpec(), True, False)[
        0
    ]
    return losses


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("length", nargs="?", choices=["quick", "small", "full"], default="full")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--depths", type=int, nargs="+")
    parser.add_argument("--dtypes", choices=list(DTYPES), nargs="+")
    parser.add_argument("--regimes", choices=list(REGIMES), nargs="+")
    parser.add_argument("--flops", type=float, help="bfloat16 operations a second")
    parser.add_argument("--flops-float32", type=float, help="a sixth of --flops if not given")
    parser.add_argument("--bandwidth", type=float, help="bytes a second")
    parser.add_argument("--no-huge", action="store_true", help="leave out N = 1,048,576")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU: no figures")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of the files")
    return parser.parse_args(arguments)


def cases_of(options: argparse.Namespace) -> list[tuple[int, int, str, str]]:
    full = (gpu_floor.SIZES, gpu_floor.DEPTHS, tuple(DTYPES), tuple(REGIMES))
    quick = ((256, 4096, 16384), (512,), ("bfloat16",), tuple(REGIMES))
    small = (gpu_floor.SMALL_SIZES, gpu_floor.SMALL_DEPTHS, tuple(DTYPES), ("mid",))
    dry = ((96,), (16,), tuple(DTYPES), ("mid",))
    chosen = (
        dry if options.dry_run else {"quick": quick, "small": small, "full": full}[options.length]
    )
    given = (options.sizes, options.depths, options.dtypes, options.regimes)
    return list(itertools.product(*(g or c for g, c in zip(given, chosen, strict=True))))


def main(arguments: list[str]) -> int:
    options = parse(arguments)
    if not options.dry_run and not torch.cuda.is_available():
        print("bench.gpu: torch sees no CUDA device; --dry-run tries this code without one")
        return 2
    gpu = "dry run" if options.dry_run else torch.cuda.get_device_name()
    rate = gpu_floor.rate_of(gpu, options.flops, options.flops_float32, options.bandwidth)
    if options.dry_run:
        rate = rate or Rate(1e12, 1e12 / 6, 1e11)
    if rate is None:
        print(f"bench.gpu: no rates are known of {gpu}; give --flops and --bandwidth")
        return 2
    setting = Setting(options.dry_run, rate, options.length == "small")
    machine = gpu_machine.describe(gpu)
    name = "dry" if options.dry_run else f"{gpu.replace(' ', '-')}-{machine['date']}"
    store = gpu_machine.Store(options.results / name, machine, rate._asdict())
    store.say(json.dumps(machine, indent=1))
    works = [(run_case, case) for case in cases_of(options)]
    if not options.no_huge and options.length == "full":
        works.append((run_huge, (512, 16, "bfloat16", "mid") if options.dry_run else HUGE))
    failed = 0
    for run, case in works:
        start = datetime.datetime.now()
        try:
            found = run(setting, *case)
        except Exception as error:  # one case must not cost the others their figures
            store.say(f"{case}: {type(error).__name__}: {error}")
            failed += 1
            continue
        finally:
            if setting.device == "cuda":
                torch.cuda.empty_cache()
        failed += "why" in found["candidates"]["ours"]
        store.add(found)
        store.say(f"{case}, {(datetime.datetime.now() - start).total_seconds():.1f} s")
        store.say(json.dumps(found))
    store.say(
        f"floors at {rate.bfloat16 / 1e12:.0f} TFLOP/s bfloat16, {rate.float32 / 1e12:.0f} TFLOP/s "
        f"float32, {rate.bytes / 1e12:.2f} TB/s; graph is replay without launches; others as "
        "multiples of our GPU time, round by round"
    )
    store.say(gpu_floor.table(store.cases))
    store.say(gpu_machine.clocks())
    print(f"results: {store.path}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
