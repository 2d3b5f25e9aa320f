"""Time and peak memory of one training step of the loss, in a process of its own.

    python -m ms_kernels.step_cost cpu 4096 128 [workspace_bytes]

prints {"milliseconds": ..., "peak_bytes": ...}. The peak is resident memory beyond the embeddings
and their gradient, and is known on Linux only (null elsewhere).
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor

import ms_kernels


def measure(backend: str, n: int, d: int, *budget: int) -> dict[str, float | None]:
    """The cost in a fresh process, whose memory nothing else has touched."""
    command = [sys.executable, "-m", "ms_kernels.step_cost", backend, *map(str, (n, d, *budget))]
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
    return _resident("VmHWM") - before - x.numel() * x.element_size()


def _resident(field: str) -> int:
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def main() -> None:
    backend, n, d = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    if len(sys.argv) > 4:
        ms_kernels.options.workspace_bytes = int(sys.argv[4])
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
    for _ in range(5):
        start = time.perf_counter()
        step(x)
        times.append(time.perf_counter() - start)
    print(json.dumps({"milliseconds": 1e3 * statistics.median(times), "peak_bytes": peak}))


if __name__ == "__main__":
    main()
