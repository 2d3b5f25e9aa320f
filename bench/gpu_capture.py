"""Graphs: captured only where a capture can succeed; one that fails leaves nothing behind."""

import contextlib
import re
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
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


def capture(cuda: Any, run: Run, steps: int = 1, debug: bool = False) -> Any:
    """A graph of several runs. torch.cuda.graph would leave its side stream current if one fails.

    debug: its nodes can be listed.
    """
    side = cuda.Stream()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):  # what a first run allocates and compiles is not captured
        for _ in range(2):
            run()
    cuda.current_stream().wait_stream(side)
    cuda.synchronize()
    cuda.empty_cache()
    graph = cuda.CUDAGraph()
    if debug:
        graph.enable_debug_mode()
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


def nodes_of(cuda: Any, run: Run) -> list[str]:
    """What a graph of one run is made of: names of kernels, and MEMCPY, MEMSET and the like."""
    graph = capture(cuda, run, debug=True)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph.debug_dump(str(path))
        drawn = path.read_text()
        found = nodes_in(drawn)
        if not found:  # another driver may draw in another way: that is no graph without nodes
            raise RuntimeError(f"no node is read from the driver's drawing: {drawn[:120]!r}")
        return found


def nodes_in(dot: str) -> list[str]:
    """The nodes of the driver's drawing of a graph, terse or verbose."""
    found = []
    for label in re.findall(r'"graph_\d+_node_\d+"\s*\[[^\]]*?label="(.*?)"\s*\]', dot, re.DOTALL):
        kernel = re.search(r"([\w$.:~]+)\s*\\<\\<\\<", label)
        other = re.search(r"\b[A-Z][A-Z_]{2,}\b", label)
        found.append(kernel[1] if kernel else other[0] if other else label.strip()[:60])
    return found
