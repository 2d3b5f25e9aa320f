"""python -m bench.memory candidate N D: bytes at the peak of one step, in a fresh process."""

import subprocess
import sys

import torch

from bench.baselines import BASELINES, ours
from ms_kernels.step_cost import peak_of


def measure(name: str, n: int, d: int) -> int:
    command = [sys.executable, "-m", "bench.memory", name, str(n), str(d)]
    return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def main() -> None:
    name, n, d = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    function = {"ours": ours, **BASELINES}[name]
    torch.manual_seed(0)
    y = torch.arange(n) // 8

    def step(x: torch.Tensor) -> None:
        function(x, y[: len(x)]).backward()

    # The compiled loss is compiled for the size that is measured: compiling is not a step.
    step(torch.randn(n if name == "compiled" else min(n, 300), d, requires_grad=True))
    print(peak_of(step, torch.randn(n, d, requires_grad=True)))


if __name__ == "__main__":
    main()
