"""The CUDA runtime that the module links, over a libcuda.so.1 with no GPU behind it.

nvcc compiles launch.cuh, the static runtime of that very nvcc is linked, and the runtime loads
tests/stand_in_driver: so far as it goes, this is what a user's machine runs. It goes as far as the
driver's version and its entry points, all of which it asks for by name. Then the runtime wants
tables that NVIDIA does not document; given tables of the right size it takes the primary context,
and asks the driver for a proof that it is NVIDIA's (cudaErrorSoftwareValidityNotEstablished).
That is where a stand-in ends, and has to: launches, their attributes and their capture are walked
against a stand-in of the runtime itself, in test_cuda_host.py and test_cuda_launch.py.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from host_gpu import build
from host_gpu.host import ALLOWED

STAND_IN = Path(__file__).parent / "stand_in_driver"
PROBE, PROBES = STAND_IN / "probe.cu", ("batch_float64", "tiled_float64")
NVCC, CC, NM = shutil.which("nvcc"), shutil.which("cc"), shutil.which("nm")
pytestmark = [
    pytest.mark.skipif(NVCC is None, reason="nvcc is not installed"),
    pytest.mark.skipif(None in (CC, NM), reason="cc and nm are needed"),
    pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not())),
    pytest.mark.slow,
]
# Nothing is launched, so nothing is read: addresses are none. Options are in the order of
# csrc/call.h.
SCRIPT = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(*module.versions())
for by_tiles in (False, True):
    call = module.Call(
        module.Job.loss_and_gradient, module.DType.float64, module.Precision.highest, 8,
        (0, 8, 70, 0, 0, 0), None, ((0, 1, 1, 0), (2.0, 50.0, 0.5, 0.1, 0.0, 1.0)), 0.0, by_tiles,
    )
    call.plan(1 << 20)
    try:
        call.run(256, 0, 0)
    except RuntimeError as error:
        print(error)
"""


def run(command, **environment):
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        cwd=build.ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With _cuda.so, of nvcc, and libcuda.so.1."""
    made = tmp_path_factory.mktemp("stand_in_driver")
    csrc = build.CSRC
    nvcc = [NVCC, "-std=c++17", "-O1", f"-I{csrc}", "-Xcompiler", "-fPIC", "-Werror=all-warnings"]
    launch = made / "launch.o"
    for name in PROBES:
        probe = ["-arch=sm_90", *build.chosen(name), "-c", PROBE]
        run([*nvcc, *probe, "-o", made / f"{name}.o"])
    of_host = csrc / "cuda" / "host"
    run([*nvcc, "-c", of_host / "launch.cpp", "-o", launch])
    missing = [name for name in build.INSTANCES if name not in PROBES]
    host = [*sorted(of_host.glob("plan*.cpp")), csrc / "module_cuda.cpp"]
    host.append(build.absent(missing))
    # Those that use nothing of CUDA are the emulator's own.
    objects = [build.compile_one(path, csrc, ["-O0"]) for path in host]
    link = [NVCC, "-shared", "-cudart", "static", launch, *objects]
    link += [made / f"{name}.o" for name in PROBES]
    run([*link, "-o", made / "_cuda.so"])
    driver = STAND_IN / "cuda_driver.c"
    flags = ["-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-Wl,-soname,libcuda.so.1"]
    (made / "driver").mkdir()
    run([CC, *flags, driver, "-o", made / "driver" / "libcuda.so.1"])
    return made


def asked(folder, **environment):
    """The versions, and the error of either kind of launch."""
    out = run([sys.executable, "-c", SCRIPT, folder / "_cuda.so"], **environment)
    versions, one_launch, by_tiles = out.splitlines()
    assert one_launch == by_tiles
    return versions, one_launch


def test_without_a_driver(folder):
    versions, error = asked(folder)
    assert versions.startswith("0 1")
    assert error.startswith("ms_kernels: cudaSetDevice(0) failed: CUDA driver version is insuff")
    assert error.endswith("(cudaErrorInsufficientDriver)")


@pytest.mark.parametrize("majors", [1, 2])
def test_a_driver_older_than_the_runtime(folder, majors):
    """By a major version: within one, drivers serve later runtimes."""
    runtime = int(asked(folder)[0].split()[1])
    version = str((runtime // 1000 - majors) * 1000 + 80)
    path = {"LD_LIBRARY_PATH": str(folder / "driver")}
    versions, error = asked(folder, STAND_IN_DRIVER_VERSION=version, **path)
    assert versions == f"{version} {runtime}"
    assert "(cudaErrorInsufficientDriver)" in error


def test_how_far_the_runtime_goes(folder, tmp_path):
    """It finds each entry point by name; without NVIDIA's tables it goes no further, and we say."""
    log = tmp_path / "asked"
    path = {"LD_LIBRARY_PATH": str(folder / "driver")}
    _, error = asked(folder, STAND_IN_DRIVER_LOG=str(log), **path)
    assert re.match(r"ms_kernels: cudaSetDevice\(0\) failed: .*\(cudaError\w+\)$", error)
    assert "InsufficientDriver" not in error
    names = log.read_text().splitlines()
    assert {"cuDriverGetVersion", "cuLaunchKernel", "cuLaunchCooperativeKernel"} <= set(names)
    assert names.count("cuGetExportTable") > 1  # by name, then for a table


def test_the_launcher_calls_nothing_else_of_the_runtime(folder):
    """By nvcc's own headers too: nothing that waits, and nothing that allocates."""
    symbols = run([NM, "-u", "-P", *(folder / f"{name}.o" for name in PROBES)])
    used = {line.split()[0] for line in symbols.splitlines() if line.startswith("cuda")}
    told = {"cudaGetLastError", "cudaGetErrorName", "cudaGetErrorString"}
    assert used <= {*ALLOWED, *told, *(f"{name}WithFlags" for name in ALLOWED)}
    assert {"cudaLaunchKernel", "cudaLaunchCooperativeKernel"} <= used
