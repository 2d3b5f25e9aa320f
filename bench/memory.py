"""python -m bench.memory candidate N D: bytes at the peak of one step, in a fresh process."""

import json
import subprocess
import sys
from typing import Any

import torch

from bench.baselines import BASELINES, ours
from ms_kernels.tools.command_line import check_count
from ms_kernels.tools.step_cost import peak_of


def measure(name: str, n: int, d: int) -> int:
    found: int | None = printed("bench.memory", name, n, d)
    assert found is not None  # on Linux, where alone this is called
    return found


def printed(module: str, *arguments: object) -> Any:
    """What a fresh process prints, such as bytes at a peak; None where none is known."""
    command = [sys.executable, "-m", module, *map(str, arguments)]
    shown = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(shown)


def main() -> None:
    if len(sys.argv) != 4:
        given = " ".join(sys.argv[1:]) or "nothing"
        sys.exit(
            f"bench.memory: expected a candidate, N and D, got {given}; for example: "
            "python -m bench.memory ours 4096 128"
        )
    candidates = {"ours": ours, **BASELINES}
    name = sys.argv[1]
    if name not in candidates:
        sys.exit(f"bench.memory: candidate: expected one of {', '.join(candidates)}, got {name}")
    n, d = (check_count("bench.memory", *given) for given in zip("ND", sys.argv[2:], strict=True))
    function = candidates[name]
    torch.manual_seed(0)
    y = torch.arange(n) // 8

    def step(x: torch.Tensor) -> None:
        function(x, y[: len(x)]).backward()

    # The compiled loss is compiled for the size that is measured: compiling is not a step.
    step(torch.randn(n if name == "compiled" else min(n, 300), d, requires_grad=True))
    print(peak_of(step, torch.randn(n, d, requires_grad=True)))


if __name__ == "__main__":
    main()
