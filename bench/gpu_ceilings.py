"""python -m bench.gpu_ceilings: what this GPU can do, so that floors are of this machine and day.

Products of two square matrices in bfloat16, TF32 and float32 through torch, and a copy on the
device. Each is written as it is found, to --results.
"""

import argparse
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from bench import gpu_machine
from bench.gpu_device import REHEARSED, device, no_device
from bench.gpu_timing import Timer, reason

SIDE = 128 if REHEARSED else 8192
COPIED = (1 << 16) if REHEARSED else (1 << 30)
ROUNDS = 2 if REHEARSED else 10


def product(dtype: torch.dtype, precision: str) -> Callable[[], object]:
    """Of random numbers: zeros would draw less power and clock higher."""
    generator = torch.Generator(device().type).manual_seed(0)
    a, b = (
        torch.randn(SIDE, SIDE, generator=generator, device=device().type).to(dtype)
        for _ in range(2)
    )

    def run() -> None:
        saved = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(precision)
        try:
            torch.mm(a, b)
        finally:
            torch.set_float32_matmul_precision(saved)

    return run


def copy() -> Callable[[], object]:
    source = torch.zeros(COPIED, dtype=torch.uint8, device=device().type)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


# What a step's products are held against: float32 at "highest" is three TF32 products in our
# kernels, a third of TF32's rate; that of torch's own float32 is known beside it.
CEILINGS: dict[str, tuple[Callable[[], Callable[[], object]], float, str]] = {
    "bfloat16": (lambda: product(torch.bfloat16, "highest"), 2.0 * SIDE**3, "operations"),
    "copy": (copy, 2.0 * COPIED, "bytes"),
    "tf32": (lambda: product(torch.float32, "high"), 2.0 * SIDE**3, "operations"),
    "torch_float32": (lambda: product(torch.float32, "highest"), 2.0 * SIDE**3, "operations"),
}


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.gpu_ceilings", description=__doc__)
    parser.add_argument("--results", type=Path, help="a file of JSON lines")
    options = parser.parse_args(arguments)
    if why := no_device():
        print(f"bench.gpu_ceilings: {why}")
        return 2
    record = gpu_machine.record(options.results)
    timer = Timer()
    failed = False
    for name, (make, work, unit) in CEILINGS.items():
        if record.has("ceiling", (name,)):
            continue
        case: dict[str, object] = {"name": name, "unit": unit, "side": SIDE}
        try:
            run = make()
            for _ in range(3):
                run()
            seconds = statistics.median(timer.gpu(run) for _ in range(ROUNDS))
            case |= {"per_second": work / seconds, "clocks": gpu_machine.clocks()}
            print(f"{name}: {work / seconds:.4g} {unit} a second", flush=True)
        except Exception as error:  # the others are worth having without it
            case |= {"error": reason(error)}
            print(f"{name}: {case['error']}", flush=True)
            failed = True
        record.add("ceiling", (name,), case)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
