"""Compiles the tuner's candidates beforehand, in processes of their own, into Triton's cache.

One process compiles a kernel in seconds on one core, and the GPU waits for it: two minutes were
enough for 40 candidates. Nothing is timed while others compile.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, TimeoutError
from concurrent.futures.process import BrokenProcessPool
from time import monotonic
from types import TracebackType
from typing import Any

# Each holds a context of the GPU, half a GB of it.
MOST_PROCESSES = 16

_trial: Any = None


class Ahead:
    """Without processes, or after one has died, candidates are compiled when they are timed."""

    def __init__(self, prepare: Callable[[], None], processes: int | None = None) -> None:
        """prepare: sets the trial of a process, by `use`."""
        count = min(os.cpu_count() or 1, MOST_PROCESSES) if processes is None else processes
        self.pool: ProcessPoolExecutor | None = None
        if count > 1:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(count, context, prepare)

    def compile(self, candidates: Sequence[Any], role: str, seconds: float) -> None:
        """Returns when all are compiled, or the time is over."""
        if self.pool is None:
            return
        try:
            waiting: list[Future[None]] = [
                self.pool.submit(_run_once, tiles, role) for tiles in candidates
            ]
            end = monotonic() + seconds
            for future in waiting:
                future.result(max(0.0, end - monotonic()))
        except TimeoutError:  # those that nobody has begun are compiled when they are timed
            for future in waiting:
                future.cancel()
        except BrokenProcessPool:  # a compiler can crash: the others go on without
            self.pool = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        if self.pool is not None:
            self.pool.shutdown(wait=False, cancel_futures=True)


def use(trial: Any) -> None:
    global _trial
    _trial = trial


def _run_once(tiles: Any, role: str) -> None:
    _trial.compile(tiles, role)
