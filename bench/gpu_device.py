"""The device that the GPU bench measures: torch.cuda, or what stands in for it in a rehearsal.

MSK_REHEARSAL=1 rehearses: the same code on CPU tensors, every call of torch.cuda answered by
bench/gpu_stand_in.py, every size tiny. Its times mean nothing.
"""

import functools
import os
from typing import Any, NamedTuple

import torch

import ms_kernels
from bench.gpu_stand_in import StandIn

BROKEN = 75  # the exit status of a process that could not go on; pytest has none above 5
GPU_BACKENDS = ("cuda", "triton")
REHEARSED = os.environ.get("MSK_REHEARSAL") == "1"


class Device(NamedTuple):
    type: str  # of the tensors
    cuda: Any  # torch.cuda, or an object that answers as it does
    events: Any  # the profiler's device type of what runs here
    activities: tuple[Any, ...]  # that the profiler is to watch
    cold_bytes: int  # written between two timed calls, several times any cache
    compiler: str  # of torch.compile


@functools.cache
def device() -> Device:
    kinds, watched = torch.autograd.DeviceType, torch.profiler.ProfilerActivity
    if REHEARSED:
        return Device("cpu", StandIn(), kinds.CPU, (watched.CPU,), 1 << 16, "eager")
    return Device(
        "cuda", torch.cuda, kinds.CUDA, (watched.CUDA, watched.CPU), 256 << 20, "inductor"
    )


def no_device() -> str | None:
    """Why nothing runs on a GPU here, or None."""
    if device().cuda.is_available():
        return None
    way_out = "MSK_REHEARSAL=1 tries this code without one"
    return f"torch {torch.__version__} sees no CUDA device; {way_out}"


def unfit() -> str | None:
    """Why nothing of ours can be measured here, or None; another backend never stands in."""
    why = no_device()
    if why is not None or backends():
        return why
    missing = (f"{name}: {ms_kernels.backends.dispatch.why_missing(name)}" for name in GPU_BACKENDS)
    return f"no kernels of ours for this GPU; {'; '.join(missing)}"


def broken() -> bool:
    """Whether an error left the CUDA context unusable: whatever comes next in this process fails.

    A bench then ends with BROKEN, and whoever started it starts it again for what is left.
    """
    try:
        device().cuda.synchronize()
    except Exception as error:  # every one says that there is nothing to go on with
        print(f"the CUDA context is broken: {error}", flush=True)
        return True
    return False


def backends() -> list[str]:
    """Those of ours that a GPU has, fastest first; only in a rehearsal panels stand in for them."""
    built = ms_kernels.backends.dispatch.built()
    found = [name for name in GPU_BACKENDS if name in built]
    return found or (["panels"] if REHEARSED else [])
