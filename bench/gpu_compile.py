"""torch.compile of the measured cases beforehand, by many processes into Inductor's caches.

One process compiles a case in 5 to 60 seconds on one core while the GPU waits; the caches on disk
then give the process that measures the same code in about one. Products tried out by "max-autotune"
are timed while other processes use the GPU too, so a choice may be off by some percent.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence

from tqdm import tqdm

from bench.gpu_cases import MODES, compiled_with, make_batch
from bench.gpu_device import REHEARSED, broken, device
from bench.gpu_timing import reason, step_of

Work = tuple[int, int, str, str, str]  # N, D, dtype, regime, mode
LONG = "autotuned"  # begins first, so that the last process does not end long after the others


def compile_ahead(works: Sequence[Work], seconds: float, processes: int | None = None) -> None:
    """Returns when all are compiled or the time is over; what is left is compiled when measured."""
    count = min(len(works), processes or max(1, (os.cpu_count() or 2) - 2))
    ordered = sorted(works, key=lambda work: (work[4] != LONG, -work[0]))
    shares = [ordered[k::count] for k in range(count)]
    command = [sys.executable, "-m", "bench.gpu_compile"]
    environment = {**os.environ, "TORCHINDUCTOR_COMPILE_THREADS": "1"}
    children = [
        subprocess.Popen([*command, json.dumps(share)], env=environment, stdout=subprocess.DEVNULL)
        for share in shares
    ]
    end = time.monotonic() + seconds
    try:
        for child in tqdm(children, desc="compiling", unit="process"):
            child.wait(max(0.0, end - time.monotonic()))
    except subprocess.TimeoutExpired:
        print(f"bench.gpu_compile: not all of {len(works)} were compiled in {seconds:.0f} s")
    finally:
        for child in children:
            child.kill()
            child.wait()


def works_of(shapes: Sequence[tuple[int, int, str, str]], modes: Sequence[str]) -> Iterator[Work]:
    for n, d, dtype, regime in shapes:
        for mode in modes:
            yield n, d, dtype, regime, mode


def main(arguments: list[str]) -> int:
    for n, d, dtype, regime, mode in json.loads(arguments[0]):
        x, y, _ = make_batch(n, d, dtype, regime)
        run = step_of(compiled_with(device().compiler, MODES[mode]), x, y)
        try:
            for _ in range(1 if REHEARSED else 3):  # the second records a graph, the third plays it
                run()
        except Exception as error:  # the process that measures meets it again, and reports it
            print(f"{n} {d} {dtype} {mode}: {reason(error)}", file=sys.stderr)
            if broken():
                return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
