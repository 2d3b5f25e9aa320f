"""torch.cuda as a rehearsal on the CPU needs it: the calls that we make, and the same refusals.

It refuses what a GPU refuses: to wait or to capture inside a capture, to replay what was not
captured, to give the time between events that nobody waited for, and, in debug mode "error", to
read a number back. What it times is the host; what it captures runs once and is not run again.
"""

import contextlib
import time
import warnings
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch

# Of a tensor, what reads a number back; torch.Tensor inherits them or has them itself.
READERS = ("item", "tolist", "__bool__", "__int__", "__float__", "__index__")
MODES = {"default": 0, "warn": 1, "error": 2}


class StandIn:
    def __init__(self) -> None:
        self.capturing = False
        self.mode = 0
        self.stream_now = Stream(self)
        self.waits = 0  # a count: an event is over once somebody waited after it
        self._readers = {name: getattr(torch.Tensor, name) for name in READERS}

    def is_available(self) -> bool:
        return True

    def device_count(self) -> int:
        return 1

    def current_device(self) -> int:
        return 0

    def get_device_name(self, device: object = None) -> str:
        return "stand-in"

    def get_device_capability(self, device: object = None) -> tuple[int, int]:
        return (9, 0)

    def get_device_properties(self, device: object = None) -> SimpleNamespace:
        return SimpleNamespace(total_memory=2**33, multi_processor_count=2, L2_cache_size=2**20)

    def synchronize(self, device: object = None) -> None:
        self.refuse_inside("a wait")
        self.waits += 1

    def refuse_inside(self, what: str) -> None:
        if self.capturing:
            raise RuntimeError(f"{what} is not permitted when a stream is capturing")

    def empty_cache(self) -> None:
        self.refuse_inside("to free memory")

    def memory_allocated(self) -> int:
        return 0

    def max_memory_allocated(self) -> int:
        return 1 << 10

    def reset_peak_memory_stats(self) -> None:
        pass

    def Event(self, enable_timing: bool = False) -> "Event":
        return Event(self)

    def Stream(self) -> "Stream":
        return Stream(self)

    def current_stream(self) -> "Stream":
        return self.stream_now

    @contextlib.contextmanager
    def stream(self, stream: "Stream") -> Iterator[None]:
        before, self.stream_now = self.stream_now, stream
        try:
            yield
        finally:
            self.stream_now = before

    def CUDAGraph(self) -> "Graph":
        return Graph(self)

    @contextlib.contextmanager
    def graph(self, graph: "Graph", stream: "Stream | None" = None) -> Iterator[None]:
        """As torch has it: where the body fails, the side stream stays the current one."""
        self.synchronize()
        self.stream_now = stream or Stream(self)
        before = self.stream_now
        graph.capture_begin()
        yield
        graph.capture_end()
        self.stream_now = before

    def set_sync_debug_mode(self, mode: str | int) -> None:
        self.mode = MODES[mode] if isinstance(mode, str) else mode
        for name, reader in self._readers.items():
            setattr(torch.Tensor, name, _refuse_reading if self.mode == 2 else reader)
        if self.mode:
            # torch says so once in a process, and where warnings are errors that raises.
            warnings.warn("Synchronization debug mode is a prototype feature", stacklevel=2)

    def get_sync_debug_mode(self) -> int:
        return self.mode

    def _sleep(self, clocks: int) -> None:
        pass

    def cudart(self) -> SimpleNamespace:
        return SimpleNamespace(cudaProfilerStart=lambda: 0, cudaProfilerStop=lambda: 0)


def _refuse_reading(tensor: torch.Tensor) -> Any:
    raise RuntimeError("called a synchronizing CUDA operation")


class Stream:
    cuda_stream = 0

    def __init__(self, cuda: StandIn) -> None:
        self.cuda = cuda

    def wait_stream(self, other: "Stream") -> None:
        pass

    def synchronize(self) -> None:
        self.cuda.synchronize()


class Event:
    def __init__(self, cuda: StandIn) -> None:
        self.cuda = cuda
        self.at: float | None = None
        self.waits = 0

    def record(self) -> None:
        self.at, self.waits = time.perf_counter(), self.cuda.waits

    def elapsed_time(self, end: "Event") -> float:
        """Milliseconds."""
        if self.at is None or end.at is None:
            raise RuntimeError("both events must be recorded before their time is asked for")
        if self.cuda.waits <= end.waits:
            raise RuntimeError("device not ready: nobody waited for the later event")
        return 1e3 * (end.at - self.at)


class Graph:
    def __init__(self, cuda: StandIn) -> None:
        self.cuda = cuda
        self.captured = False

    def capture_begin(self) -> None:
        self.cuda.refuse_inside("another capture")
        self.cuda.capturing = True

    def capture_end(self) -> None:
        if not self.cuda.capturing:
            raise RuntimeError("capture_end: nothing is being captured")
        self.cuda.capturing, self.captured = False, True

    def replay(self) -> None:
        if not self.captured:
            raise RuntimeError("replay: called without a preceding successful capture")
        self.cuda.refuse_inside("a replay")

    def reset(self) -> None:
        self.captured = False
