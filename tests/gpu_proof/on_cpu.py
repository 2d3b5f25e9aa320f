"""python -m gpu_proof.on_cpu [MODULE [argument ...]]: a module with the GPU's backends on the CPU.

The CUDA kernels are those that tests/host_gpu executes, the Triton kernels are interpreted. Where
either cannot be, it is left out, and the bench takes panels.
"""

import functools
import os
import runpy
import sys

import pytest
import torch
from host_gpu import build
from host_gpu.serve import serve

from bench.gpu_device import REHEARSED
from ms_kernels import settings
from ms_kernels.backends import cuda, dispatch

PRECISIONS = ("bfloat16", "float32", "tf32")
INSTANCES = tuple(f"{path}_{name}" for path in ("batch", "small", "tiled") for name in PRECISIONS)
ONE_LAUNCH = 48  # so that tiny batches take either path


def started(module: str) -> list[str]:
    """The command of a module, on the CPU in a rehearsal."""
    before = ["-m", "gpu_proof.on_cpu"] if REHEARSED else ["-m"]
    return [sys.executable, *before, module]


@functools.cache
def no_interpreter() -> str | None:
    """Why Triton's interpreter cannot be used here, or None; tried, not deduced from versions."""
    if os.environ.get("TRITON_INTERPRET") != "1":
        return "TRITON_INTERPRET is not 1"
    try:
        import triton
        import triton.language as tl
    except ImportError as error:
        return f"Triton is not here ({error})"

    @triton.jit
    def twice(x, n, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        at = tl.arange(0, BLOCK)
        total = tl.sum(tl.load(x + at, mask=at < n, other=0.0), axis=0)
        if n > 1:
            tl.store(x + at, tl.load(x + at, mask=at < n) + total, mask=at < n)

    x = torch.ones(3)
    try:
        twice[(1,)](x, 3, BLOCK=4)
    except Exception as error:  # of the interpreter: with NumPy 2.4 and later those before 3.7
        import numpy

        versions = f"Triton {triton.__version__} does not interpret with NumPy {numpy.__version__}"
        return f"{versions}: {str(error).splitlines()[-1][:200]}"
    return None if bool((x == 4).all()) else "Triton's interpreter gives wrong sums"


@functools.cache
def serve_all() -> dict[str, str | None]:
    """Both backends on CPU tensors for the rest of the process; of each why not, or None."""
    found = {"cuda": build.why_not(), "triton": no_interpreter()}
    before = frozenset(dispatch.built()) - {"triton"}
    patch = pytest.MonkeyPatch()
    if found["cuda"] is None:
        serve(patch, build.module(instances=INSTANCES), "small")
    served = frozenset(name for name, why in found.items() if why is None)
    for name in served:
        dispatch.DEVICE_OF[name] = "cpu"
    patch.setattr(dispatch, "built", lambda device=None: before | served)
    # Neither serves by itself where nobody names it: the bench names it, others should be fast.
    patch.setattr(cuda, "ONE_LAUNCH", ONE_LAUNCH)
    patch.setattr(settings, "ONE_LAUNCH", ONE_LAUNCH)
    patch.setattr(cuda, "MOST_SAMPLES", ONE_LAUNCH)
    return found


if __name__ == "__main__":
    for name, why in serve_all().items():
        print(f"{name}: {'on the CPU' if why is None else f'left out, {why}'}", flush=True)
    if len(sys.argv) == 1:  # what is compiled for it is there from now on
        sys.exit()
    module, *arguments = sys.argv[1:]
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
