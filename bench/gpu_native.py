"""Host seconds that a backend's call spends in what is compiled: the module of the CUDA kernels, or
the one that plays a tape, or the launcher that Triton compiles for each of its kernels."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from bench.gpu_timing import Run
from ms_kernels.api import known
from ms_kernels.backends import cuda_call

# What the module compiles to is known by these; everything else of a call is Python.
COMPILED = ("plan", "run", "run_again", "play")


class Clock:
    def __init__(self) -> None:
        self.spent = 0.0
        self.entered = 0.0
        self.calls = 0

    def enter(self, *_: Any) -> None:
        self.entered = time.perf_counter()

    def leave(self, *_: Any) -> None:
        self.spent += time.perf_counter() - self.entered
        self.calls += 1


class Timed:
    """A call of the module whose compiled steps are timed."""

    def __init__(self, call: Any, clock: Clock) -> None:
        self._call, self._clock = call, clock

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._call, name)
        if name not in COMPILED:
            return found

        def timed(*arguments: Any) -> Any:
            self._clock.enter()
            try:
                return found(*arguments)
            finally:
                self._clock.leave()

        return timed


class TimedModule:
    def __init__(self, module: Any, clock: Clock) -> None:
        self._module, self._clock = module, clock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._module, name)

    def Call(self, *arguments: Any) -> Timed:
        return Timed(self._module.Call(*arguments), self._clock)


@contextlib.contextmanager
def timed_module(clock: Clock) -> Iterator[None]:
    saved = cuda_call.module
    module = TimedModule(saved(), clock)
    cuda_call.module = lambda: module  # type: ignore[assignment]
    known.forget()  # plans keep calls of the module that made them
    try:
        yield
    finally:
        cuda_call.module = saved
        known.forget()


def timed_steps(clock: Clock) -> contextlib.AbstractContextManager[None]:
    """By tapes, where there are some that need no launcher of Triton."""
    from ms_kernels.backends.triton import tape

    native = {k: t for k, t in tape._tapes.items() if t is not None and t.native is not None}
    return _timed_tapes(native, clock) if native else timed_launches(clock)


@contextlib.contextmanager
def _timed_tapes(tapes: dict[Any, Any], clock: Clock) -> Iterator[None]:
    from ms_kernels.backends.triton import tape

    timed = {k: t._replace(native=Timed(t.native, clock)) for k, t in tapes.items()}
    tape._tapes.update(timed)
    try:
        yield
    finally:
        tape._tapes.update(tapes)


@contextlib.contextmanager
def timed_launches(clock: Clock) -> Iterator[None]:
    from triton import knobs

    hooks = (
        (knobs.runtime.launch_enter_hook, clock.enter),
        (knobs.runtime.launch_exit_hook, clock.leave),
    )
    for chain, call in hooks:
        chain.add(call)
    try:
        yield
    finally:
        for chain, call in hooks:
            chain.remove(call)


def native_time(backend: str, run: Run, calls: int) -> float:
    """Seconds of one run inside what is compiled."""
    clock = Clock()
    watched = {"cuda": timed_module, "triton": timed_steps}.get(backend)
    if watched is None:
        raise ValueError(f"{backend} has nothing compiled")
    with watched(clock):
        for _ in range(calls):
            run()
    if not clock.calls:
        raise RuntimeError("nothing compiled was called (the interpreter calls no launcher)")
    return clock.spent / calls
