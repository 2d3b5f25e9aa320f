"""Compiles the tuner's candidates beforehand, in processes of their own, into Triton's cache.

One process compiles a kernel in seconds on one core, and the GPU waits for it: two minutes were
enough for 40 candidates. Nothing is timed while others compile: who takes too long is ended.
"""

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, wait
from time import sleep
from types import TracebackType
from typing import Any

# Each holds a context of the GPU, half a GB of it, and takes seconds to have one.
MOST_PROCESSES = 16
# What an operating system can be asked to wait for.
LONGEST = 1e6

_trials: dict[str, Any] = {}


class Ahead:
    """Without processes, or after one has died or taken too long, candidates are compiled when they
    are timed."""

    def __init__(self, prepare: Callable[[], None], processes: int | None = None) -> None:
        """prepare: gives a process the trial of each mode, by `use`."""
        cores = min(os.cpu_count() or 1, MOST_PROCESSES)
        self.count = cores if processes is None else processes
        self.pool: ProcessPoolExecutor | None = None
        if self.count > 1:
            context = multiprocessing.get_context("spawn")
            self.pool = ProcessPoolExecutor(self.count, context, prepare)

    def start(self, seconds: float) -> None:
        """Returns when nearly all processes are there, or the time is over."""
        self._run([(None, None, None)] * self.count, seconds)

    def compile(self, mode: str, candidates: Sequence[Any], role: str, seconds: float) -> None:
        """Returns when all are compiled; if they are not when the time is over, nobody compiles
        ahead any more."""
        self._run([(mode, tiles, role) for tiles in candidates], seconds)

    def _run(self, works: Sequence[tuple[Any, ...]], seconds: float) -> None:
        if self.pool is None:
            return
        try:
            futures = [self.pool.submit(_run_once, *work) for work in works]
            done, late = wait(futures, min(max(0.0, seconds), LONGEST))
            if late or any(future.exception() is not None for future in done):
                self.end()
        except Exception:  # of a pool that is broken: a compiler can crash
            self.end()

    def end(self) -> None:
        if self.pool is None:
            return
        workers = list((self.pool._processes or {}).values())
        self.pool.shutdown(wait=False, cancel_futures=True)
        for worker in workers:  # nobody waits for them, at the end of this process neither
            worker.kill()
        self.pool = None

    def __enter__(self) -> "Ahead":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.end()


def use(trials: dict[str, Any]) -> None:
    """Of this process, by their modes."""
    _trials.update(trials)


def _run_once(mode: str | None, tiles: Any, role: str | None) -> None:
    if mode is None:
        sleep(1.0)  # so that each process takes one, and none of them many
    else:
        _trials[mode].compile(tiles, role)
