"""Time and peak memory of one training step of the loss, in a process of its own.

    python -m ms_kernels.tools.step_cost cpu 4096 128 [timed steps [workspace_bytes]]

prints {"milliseconds": ..., "peak_bytes": ...}. The peak is resident memory beyond the embeddings
and their gradient, and is known on Linux only (null elsewhere); of no timed step the time is null.
"""

import itertools
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import ms_kernels
from ms_kernels.backends import dispatch
from ms_kernels.checks import check_choice
from ms_kernels.tools.command_line import check_count


def measure(backend: str, n: int, d: int, steps: int = 5, *budget: int) -> dict[str, float | None]:
    """The cost in a fresh process, whose memory nothing else has touched."""
    numbers = map(str, (n, d, steps, *budget))
    command = [sys.executable, "-m", "ms_kernels.tools.step_cost", backend, *numbers]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float | None] = json.loads(done.stdout)
    return found


def peak_of(step: Callable[[Tensor], None], x: Tensor) -> int | None:
    """Resident bytes at the peak of step(x), beyond x and its gradient."""
    if not sys.platform.startswith("linux"):
        return None
    before = _resident("VmRSS")
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the high-water mark starts again from here
    step(x)
    # Pages that were freed and not given back may serve the step: it then needs none.
    return max(0, _resident("VmHWM") - before - x.numel() * x.element_size())


def _resident(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def parse(arguments: list[str]) -> tuple[str, int, int, int]:
    """Backend, N, D and timed steps; sets the budget if it is given. Exits with what was wanted."""
    names = ("N", "D", "timed steps", "workspace_bytes")
    if not 3 <= len(arguments) <= 1 + len(names):
        sys.exit(
            "step_cost: expected a backend, N, D and perhaps the number of timed steps and "
            f"workspace_bytes, got {' '.join(arguments) or 'nothing'}; for example: "
            "python -m ms_kernels.tools.step_cost cpu 4096 128"
        )
    backend, *numbers = arguments
    n, d, *rest = map(check_count, itertools.repeat("step_cost"), names, numbers, (1, 1, 0, 0))
    try:
        check_choice("backend", backend, dispatch.NAMES)
        dispatch.resolve(backend, "cpu")
        if rest[1:]:
            ms_kernels.options.workspace_bytes = rest[1]
    except ValueError as error:
        sys.exit(f"step_cost: {error}")
    return backend, n, d, rest[0] if rest else 5


def main() -> None:
    backend, n, d, steps = parse(sys.argv[1:])
    torch.manual_seed(0)
    y = torch.arange(n) // 8

    def step(x: Tensor) -> None:
        x.grad = None
        loss = ms_kernels.multi_similarity_loss(x, y[: len(x)], backend=backend)
        loss.backward()  # type: ignore[no-untyped-call]

    step(torch.randn(min(n, 300), d, requires_grad=True))  # libraries and threads are loaded now
    x = torch.randn(n, d, requires_grad=True)
    peak = peak_of(step, x)
    times = []
    for _ in range(steps):
        start = time.perf_counter()
        step(x)
        times.append(time.perf_counter() - start)
    milliseconds = 1e3 * statistics.median(times) if times else None
    print(json.dumps({"milliseconds": milliseconds, "peak_bytes": peak}))


if __name__ == "__main__":
    main()
