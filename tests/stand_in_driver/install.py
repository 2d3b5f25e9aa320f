"""Triton's own launcher without a GPU: a stand-in for the CUDA driver, and CPU tensors through it.

Binder, specialisation, compilation and the launch itself are Triton's. The driver is ours: it takes
what a launch hands over, refuses what a driver would refuse, and computes nothing. So it shows a
kernel that cannot be bound, compiled or launched, and counts launches, compilations and waits; it
shows nothing of what a kernel computes, and nothing of the order in which a GPU would do it.
"""

import ctypes
import functools
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch
from triton.backends.nvidia import driver as nvidia
from triton.backends.nvidia.compiler import CUDABackend
from triton.runtime import driver as active
from triton.runtime.jit import JITFunction

from ms_kernels.backends import dispatch
from ms_kernels.backends import triton as backend

SOURCE = Path(__file__).parent / "triton_driver.c"
SCRATCH = (8, 8)  # addresses that Triton adds to those of a kernel
HEADERS = Path(nvidia.__file__).parent / "include"


class Launch(NamedTuple):
    name: str
    grid: tuple[int, int, int]
    threads: int
    shared: int
    parameters: int  # a digest of what they hold


class _Launch(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("grid", ctypes.c_uint * 3),
        ("block", ctypes.c_uint),
        ("shared", ctypes.c_uint),
        ("stream", ctypes.c_ulonglong),
        ("digest", ctypes.c_ulonglong),
    ]


class StandIn:
    """The installed driver: what was launched, compiled and waited for since `forget`."""

    def __init__(self, driver: ctypes.CDLL) -> None:
        self.driver = driver
        self.compiled: list[str] = []
        driver.stand_in_launch.restype = ctypes.POINTER(_Launch)
        driver.stand_in_launched.restype = driver.stand_in_waits.restype = ctypes.c_long
        driver.stand_in_launch.argtypes = [ctypes.c_long]
        driver.stand_in_refused.restype = ctypes.c_char_p

    def forget(self) -> None:
        self.driver.stand_in_forget()
        self.compiled.clear()

    @property
    def launches(self) -> list[Launch]:
        rows = (self.driver.stand_in_launch(i)[0] for i in range(self.driver.stand_in_launched()))
        return [Launch(r.name.decode(), tuple(r.grid), r.block, r.shared, r.digest) for r in rows]

    @property
    def waits(self) -> int:
        waits: int = self.driver.stand_in_waits()
        return waits

    @property
    def refused(self) -> str:
        """What a driver would not have taken, or nothing."""
        refused: bytes = self.driver.stand_in_refused()
        return refused.decode()

    def be(self, capability: tuple[int, int], version: int = 13000) -> None:
        """Another GPU, another driver; kernels compiled for it from now on."""
        self.driver.stand_in_set(*capability, version)
        self.capability = capability


def install(capability: tuple[int, int] = (9, 0)) -> StandIn:
    """Makes this process launch Triton's kernels on the stand-in, for CPU tensors.

    In a process of its own, with TRITON_INTERPRET=0 and a TRITON_CACHE_DIR of its own.
    """
    folder = Path(tempfile.mkdtemp(prefix="stand-in-driver-"))
    path = folder / "libcuda.so.1"
    subprocess.run(
        [
            *(os.environ.get("CC", "cc"), "-shared", "-fPIC", "-O1", "-Wall", "-Werror"),
            *("-I", HEADERS, SOURCE, "-o", path, "-Wl,-soname,libcuda.so.1"),
        ],
        check=True,
    )
    (folder / "libcuda.so").symlink_to(path)  # what earlier Tritons link
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    stand_in = StandIn(ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL))
    stand_in.be(capability)

    torch.cuda.get_device_capability = lambda device=None: stand_in.capability
    torch.cuda.get_device_name = lambda device=None: "stand-in"
    torch.cuda.current_device = lambda: 0
    driver = nvidia.CudaDriver()
    driver.get_current_device = lambda: 0
    driver.get_current_stream = lambda device: 0
    driver.get_device_capability = lambda device: stand_in.capability
    active.set_active(driver)

    # The one seam in the package: this backend may be given CPU tensors.
    dispatch.DEVICE_OF["triton"] = None
    backend.missing = lambda: None
    dispatch.why_missing.cache_clear()

    def count(*, fn, compile, **_):
        stand_in.compiled.append(fn.name.rpartition(".")[2])

    try:
        from triton.knobs import runtime

        runtime.jit_post_compile_hook = count
    except ImportError:  # before Triton 3.4
        JITFunction.compiled_hook = staticmethod(count)
    return stand_in


def compile_to_ttir() -> None:
    """Kernels stop at Triton's own language of blocks: a tenth of the time, and no cubin.

    All that Python source and arguments can get wrong shows by then; what only the machine's
    compiler finds (spills, shared memory) is for a full run and tests/test_triton_compile.py.
    """
    real = CUDABackend.add_stages

    def add_stages(self, stages, options, *rest):
        real(self, stages, options, *rest)
        for name in [name for name in stages if name not in ("ttir", "cubin")]:
            del stages[name]
        stages["cubin"] = functools.partial(_no_cubin, options)

    CUDABackend.add_stages = add_stages


def _no_cubin(options, source, metadata) -> bytes:
    name, given = re.search(r"tt\.func public @(\w+)\((.*?)\) attributes", str(source)).groups()
    metadata["name"] = name
    metadata.update(num_warps=options.num_warps, shared=0, tmem_size=0)
    for scratch in ("global_scratch", "profile_scratch"):
        metadata.update({f"{scratch}_size": 0, f"{scratch}_align": 1})
    kinds = re.findall(r"%\w+: (!tt\.ptr|[if]\d+)", given)
    sizes = [8 if kind == "!tt.ptr" else max(1, int(kind[1:]) // 8) for kind in kinds]
    return f"parameters of {' '.join(map(str, (*sizes, *SCRATCH)))}\0".encode()
