"""Graphs: captured only where a capture can succeed; one that fails leaves nothing behind."""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

Run = Callable[[], object]


@contextlib.contextmanager
def no_wait(cuda: Any) -> Iterator[None]:
    """A wait of the host raises RuntimeError inside; afterwards the mode is what it was.

    torch warns where the mode is set, once in a process. Where warnings are errors that raises
    after or before the mode changed: so it is silenced, and the way back is open from the start.
    """
    before = cuda.get_sync_debug_mode()
    cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cuda.set_sync_debug_mode("error")
        yield
    finally:
        cuda.set_sync_debug_mode(before)


def why_not_captured(cuda: Any, run: Run) -> str | None:
    """None where a capture is worth trying: a call that waits for the device cannot be captured,
    and a capture that fails may leave the allocator and the stream behind."""
    try:
        with no_wait(cuda):
            run()
    except RuntimeError as error:
        return f"it waits for the device: {str(error).splitlines()[0][:200]}"
    return None


def capture(cuda: Any, run: Run, steps: int = 1) -> Any:
    """A graph of several runs. Where one fails torch.cuda.graph would leave its stream current."""
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):  # what a first run allocates and compiles is not captured
        for _ in range(2):
            run()
    cuda.current_stream().wait_stream(side)
    cuda.synchronize()
    cuda.empty_cache()
    graph = cuda.CUDAGraph()
    with cuda.stream(side):
        graph.capture_begin()
        try:
            for _ in range(steps):
                run()
        except BaseException:
            with contextlib.suppress(RuntimeError):
                graph.capture_end()
            raise
        graph.capture_end()
    return graph
