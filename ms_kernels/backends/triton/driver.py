"""Launches of a tape handed to the CUDA driver in one call, past Triton's launcher.

What a launch is, Triton knows: a function, the parameters of its signature, threads and shared
memory. Where it does more (hooks, scratch memory, clusters), or where the driver does not confirm
the sizes of the parameters, launches go by its launcher as before.
"""

import functools
import importlib
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

# Of Triton's types of arguments; what begins with a star is an address.
_CODES = {"i1": "b", "i8": "b", "i16": "h", "i32": "i", "i64": "q"}
_CODES |= {"u1": "B", "u8": "B", "u16": "H", "u32": "I", "u64": "Q", "fp32": "f", "fp64": "d"}
_POINTER = "Q"
THREADS_OF_WARP = 32


class Request(NamedTuple):
    """A launch as a tape knows it: arguments in the order of the kernel, constants among them."""

    kernel: Any  # compiled
    grid: tuple[int, ...]
    arguments: Sequence[Any]
    addresses: Sequence[tuple[int, int, int]]  # which argument, which base, bytes from it on


@functools.cache
def _module() -> Any:
    """None where it was not built: nothing depends on it but time."""
    try:
        return importlib.import_module("ms_kernels._tape")
    except ImportError:
        return None


def unlaunchable() -> str | None:
    """None when Triton's launcher can be had: at its first use a C compiler builds a part of it."""
    try:
        importlib.import_module("triton.runtime").driver.active.get_current_target()
    except (
        Exception
    ) as error:  # of the compiler, its headers, the driver's library: all are Triton's
        told = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        return (
            f"Triton cannot build its launcher ({told}); it needs a C compiler, Python's headers "
            "and the driver's libcuda.so.1 (Debian: apt install gcc python3-dev)"
        )
    return None


def missing() -> str | None:
    """Why launches go by Triton's launcher, or None."""
    if _module() is None:
        return "ms_kernels._tape is not built; reinstall with a C++ compiler"
    return None if _knobs() is not None else "Triton is older than 3.4; update torch"


def native(requests: Sequence[Request]) -> Any:
    """A native tape of all these launches, or None."""
    module = _module()
    if module is None or _knobs() is None:
        return None
    tape = module.Tape()
    try:
        return tape if all(_add(tape, request) for request in requests) else None
    except (struct.error, OverflowError, AttributeError):  # of a type that none of ours has
        return None


def is_watched() -> bool:
    """Whether somebody asked Triton to be told of each launch, as a profiler does."""
    runtime = _knobs().runtime
    hooks = runtime.launch_enter_hook, runtime.launch_exit_hook
    return any(getattr(hook, "calls", hook) for hook in hooks)


@functools.cache
def _knobs() -> Any:
    """None before Triton 3.4, which keeps its hooks elsewhere."""
    try:
        return importlib.import_module("triton.knobs")
    except ImportError:
        return None


def _add(tape: Any, request: Request) -> bool:
    kernel, metadata = request.kernel, getattr(request.kernel, "metadata", None)
    signature = getattr(getattr(kernel, "src", None), "signature", None)
    if metadata is None or not isinstance(signature, dict) or _does_more(metadata):
        return False
    place_of: dict[int, int] = {}
    parameters: list[bytes] = []
    for place, (kind, value) in enumerate(zip(signature.values(), request.arguments, strict=True)):
        if kind == "constexpr":
            continue
        code = _POINTER if kind.startswith("*") else _CODES.get(kind)
        if code is None:
            return False
        place_of[place] = len(parameters)
        parameters.append(struct.pack(f"<{code}", value))
    addresses = [(place_of[place], *rest) for place, *rest in request.addresses]
    grid = [*request.grid, 1, 1][:3]
    threads = THREADS_OF_WARP * metadata.num_warps
    added: bool = tape.add(kernel.function, grid, threads, metadata.shared, parameters, addresses)
    return added


def _does_more(metadata: Any) -> bool:
    """Than to launch blocks with their parameters."""
    names = "global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl"
    return metadata.num_ctas != 1 or any(getattr(metadata, name, 0) for name in names)
