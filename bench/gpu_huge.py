"""A step of a batch so large that one takes about a second: ours alone, and few of them.

Two looks, each a case of its own, so that a run that is cut off keeps the first: "warm" is one
step with its peak of memory, "eager" three rounds more. The oracle sees 64 anchors, since all pairs
in float64 would take minutes.
"""

import functools
import statistics
from typing import Any, NamedTuple

import torch

import ms_kernels
from bench.gpu_cases import Batch, check_rows, chosen_backend, make_batch, ours_with
from bench.gpu_record import Case
from bench.gpu_timing import Timer, extra, step_of
from ms_kernels.backends.interface import Side
from ms_kernels.rules.spec import PairSpec

LOOKS = ("warm", "eager")
ROUNDS = 3


class Checked(NamedTuple):
    batch: Batch
    backend: str
    refusal: str | None


@functools.lru_cache(maxsize=1)  # both looks at a batch share its making and its check
def checked(shape: tuple[Any, ...]) -> Checked:
    batch = make_batch(*shape)
    backend = chosen_backend(len(batch.x), shape[2])
    return Checked(batch, backend, check_rows(batch, lambda: _row_losses(batch, backend)))


def _row_losses(batch: Batch, backend: str) -> torch.Tensor:
    """As the step computes them: of the call that makes the gradient too."""
    module = ms_kernels.backends.dispatch.MODULES[backend]
    side, spec = Side(batch.x, batch.y, None), PairSpec()
    losses: torch.Tensor = module.loss_and_gradient(side, None, spec, True, False)[0]
    return losses


def run_huge(look: str, shape: tuple[Any, ...], timer: Timer) -> Case:
    batch, backend, refusal = checked(shape)
    ours: dict[str, Any] = {"why": "refused", "refusal": refusal}
    if refusal is None:
        run = step_of(ours_with(backend), batch.x, batch.y)
        ours = _one_step(run, timer) if look == "warm" else _rounds(run, timer)
    return {
        "kept": batch.kept,
        "backend": backend,
        "checked": "row losses of 64 anchors",
        "candidates": {"ours": ours},
    }


def _one_step(run: Any, timer: Timer) -> dict[str, Any]:
    """Its time and its peak are of the same call; the check has compiled what it launches."""
    seconds: list[float] = []
    peak = timer.peak(lambda: seconds.append(timer.gpu(run)))
    return {"gpu": seconds[0], "peak_bytes": peak, "rounds": 1}


def _rounds(run: Any, timer: Timer) -> dict[str, Any]:
    times = sorted(timer.gpu(run) for _ in range(ROUNDS))
    found: dict[str, Any] = {"gpu": statistics.median(times), "gpu_low": times[0]}
    found |= {"gpu_high": times[-1], "rounds": ROUNDS, "ratio": 1.0, "host": timer.host(run)}
    extra(found, "launches", timer.launches, run)
    return found
