"""python -m bench.gpu [quick|small|full|million]: a step on a GPU against its floors and others.

Ours by every backend (the CUDA kernels by one launch and by tiles, Triton), dense PyTorch as it
comes and compiled in three ways, pytorch-metric-learning. Two looks at each list of cases: what
needs no torch.compile first, for every case, then torch.compile, the telling cases first, so that a
run that is cut off has measured the most. Cases found before, of the same sources on the same
machine, are not measured again.

Memory rule: a candidate runs where its bytes for each pair (gpu_floor.BYTES_PER_PAIR), times N
squared, stay within 80% of the device's memory. Results: lines of kind "step" of
bench/gpu_record.py in --results. MSK_REHEARSAL=1 tries this code without a GPU.
"""

import argparse
import itertools
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bench import gpu_compile, gpu_floor, gpu_huge, gpu_machine, gpu_report
from bench.baselines import has_peer
from bench.cases import REGIMES
from bench.gpu_cases import (
    DTYPES,
    MODES,
    OURS,
    Judge,
    candidates,
    chosen_backend,
    make_batch,
)
from bench.gpu_device import BROKEN, REHEARSED, broken, device, unfit
from bench.gpu_floor import Rate, fits, floor_of
from bench.gpu_record import Case, Record
from bench.gpu_timing import GRAPH_STEPS, Timer, reason, step_of, take_turns

MOST_IN_GRAPH = 1024
LOOKS = ("eager", "compiled")  # ours against all but torch.compile, and against that
# The sizes and depths that say most, first; a run that is cut off has measured those.
ORDER = ((4096, 512), (16384, 512), (256, 512), (1024, 512))


class Shape(NamedTuple):
    n: int
    d: int
    dtype: str
    regime: str


LISTS = {
    "quick": ((256, 1024, 4096, 16384), (128, 512), tuple(DTYPES), ("mid",)),
    "small": (gpu_floor.SMALL_SIZES, gpu_floor.SMALL_DEPTHS, tuple(DTYPES), ("mid",)),
    "full": (gpu_floor.SIZES, gpu_floor.DEPTHS, tuple(DTYPES), tuple(REGIMES)),
    "million": ((1 << 20,), (128,), ("bfloat16",), ("mid",)),
}


def shapes_of(options: argparse.Namespace) -> list[Shape]:
    given = (options.sizes, options.depths, options.dtypes, options.regimes)
    chosen = [g or c for g, c in zip(given, LISTS[options.list], strict=True)]
    shapes = [Shape(*values) for values in itertools.product(*chosen)]
    place = {shape: k for k, shape in enumerate(ORDER)}
    first = next(iter(DTYPES))
    return sorted(shapes, key=lambda s: (s.dtype != first, place.get((s.n, s.d), len(place))))


def known_rate(record: Record, options: argparse.Namespace) -> Rate | None:
    """What was measured on this machine, else what is known of it by its name."""
    measured = {c["name"]: c["per_second"] for c in record.cases("ceiling") if "per_second" in c}
    tf32 = measured.get("tf32")
    return gpu_floor.rate_of(
        "H100" if REHEARSED else device().cuda.get_device_name(),
        options.flops or measured.get("bfloat16"),
        options.flops_float32 or (None if tf32 is None else tf32 / 3),
        options.bandwidth or measured.get("copy"),
    )


def run_case(shape: Shape, modes: Sequence[str], timer: Timer) -> Case:
    """Checks, then times; a candidate that is not timed says why."""
    n = shape.n
    memory = device().cuda.get_device_properties(0).total_memory
    batch = make_batch(*shape)
    judge = Judge(batch, fits("dense", n, memory))
    runs, skipped = {}, {}
    for name, function in candidates(n, shape.dtype, modes, has_peer()).items():
        if not fits(name, n, memory):
            skipped[name] = {"why": "memory"}
            continue
        run = step_of(function, batch.x, batch.y)
        try:
            refusal = judge.refusal(name, run())
        except Exception as error:  # of a baseline or of ours: reported, and the others go on
            if broken():
                raise
            refusal = f"{name}: {reason(error)}"
        if refusal is None:
            runs[name] = run
        else:
            skipped[name] = {"why": "refused", "refusal": refusal}
    if not has_peer():
        skipped["metric_learning"] = {"why": "not installed"}
    errors = {"same_dtype": judge.same}
    del judge
    found: dict[str, Any] = take_turns(runs, timer, n <= MOST_IN_GRAPH) if runs else {}
    return {
        "kept": batch.kept,
        "backend": chosen_backend(n, shape.dtype),
        "errors": errors,
        "candidates": {**found, **skipped},
    }


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=__doc__)
    parser.add_argument("list", nargs="?", choices=list(LISTS), default="full")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--depths", type=int, nargs="+")
    parser.add_argument("--dtypes", choices=list(DTYPES), nargs="+")
    parser.add_argument("--regimes", choices=list(REGIMES), nargs="+")
    parser.add_argument("--looks", choices=LOOKS, nargs="+", default=list(LOOKS))
    parser.add_argument("--modes", choices=list(MODES), nargs="+", default=list(MODES))
    parser.add_argument("--flops", type=float, help="bfloat16 operations a second")
    parser.add_argument("--flops-float32", type=float, help="a sixth of --flops if not given")
    parser.add_argument("--bandwidth", type=float, help="bytes a second")
    parser.add_argument("--seconds", type=float, help="begin no case later than this")
    parser.add_argument(
        "--ahead", type=float, default=0.0, help="seconds for torch.compile by many processes"
    )
    parser.add_argument("--results", type=Path, help="a file of JSON lines")
    return parser.parse_args(arguments)


def main(arguments: list[str]) -> int:
    start = time.monotonic()
    options = parse(arguments)
    if why := unfit():
        print(f"bench.gpu: {why}")
        return 2
    record = gpu_machine.record(options.results)
    rate = known_rate(record, options)
    if rate is None:
        name = device().cuda.get_device_name()
        print(f"bench.gpu: no rates are known of {name}; give --flops and --bandwidth")
        return 2
    huge = options.list == "million"
    timer = Timer((2, 3), 0.0) if REHEARSED else Timer()
    looks = gpu_huge.LOOKS if huge else options.looks
    works = [(look, shape) for look in looks for shape in shapes_of(options)]
    if options.ahead and not huge and "compiled" in looks:
        new = [s for look, s in works if look == "compiled" and not record.has("step", (look, *s))]
        gpu_compile.compile_ahead(list(gpu_compile.works_of(new, options.modes)), options.ahead)
    failed = left = 0
    for look, shape in works:
        if record.has("step", (look, *shape)):
            continue
        if options.seconds and time.monotonic() - start > options.seconds:
            left += 1
            continue
        begun = time.monotonic()
        try:
            if huge:
                found = gpu_huge.run_huge(look, shape, timer)
            else:
                modes = options.modes if look == "compiled" else ()
                found = run_case(shape, modes, timer)
        except Exception as error:  # one case must not cost the others their figures
            found = {"error": reason(error), "candidates": {}}
        wrong = "error" in found or any("refusal" in found["candidates"].get(c, {}) for c in OURS)
        floor = floor_of(shape.n, shape.d, shape.dtype, rate)._asdict()
        seconds = round(time.monotonic() - begun, 2)
        key = (look, *shape)
        case = {**shape._asdict(), "look": look, "floor": floor, "seconds": seconds, **found}
        record.add("step", key, case)
        print(f"{look} {tuple(shape)}, {seconds} s: {gpu_report.line(case)}", flush=True)
        failed += wrong
        if "error" in found and broken():
            return BROKEN
        device().cuda.empty_cache()
    products = f"{rate.bfloat16 / 1e12:.0f} TFLOP/s bfloat16, {rate.float32 / 1e12:.0f} float32"
    print(f"floors at {products}, {rate.bytes / 1e12:.2f} TB/s; graph: a step of {GRAPH_STEPS} in")
    print("one graph; others as multiples of our GPU time, round by round")
    print(gpu_report.step_table(record.cases("step")))
    if left:
        print(f"{left} cases were left for want of time")
    print(f"results: {record.path}")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
