"""Builds the CUDA kernels for the CPU: their sources unchanged, with the headers of this folder
found before csrc/cuda/ptx.cuh and launch.cuh."""

import functools
import hashlib
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CSRC = ROOT / "csrc"
CACHE = ROOT / "build" / "host_gpu"
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
FLAGS += ["-Werror", "-Wno-unknown-pragmas", '-DMSK_CUDA_ARCHITECTURES="host"']
# pybind11 looks uninitialised to g++ 12 in such a build: a warning that is no finding.
SANITIZE = ["-fsanitize=address", "-fno-omit-frame-pointer", "-g1", "-Wno-maybe-uninitialized"]
INSTANCES = [path.stem for path in sorted((CSRC / "cuda").glob("*.cu"))]


def why_not() -> str | None:
    if shutil.which("g++") is None:
        return "g++ is not installed"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    return None


def build(csrc: Path = CSRC, instances: tuple[str, ...] = (), sanitize: bool = False) -> Path:
    """The module of these sources. `instances`: only these; a call of another type throws."""
    flags = [*FLAGS, *(["-O1", *SANITIZE] if sanitize else ["-O3"])]
    wanted = list(instances) or INSTANCES
    kernels = [csrc / "cuda" / f"{name}.cu" for name in wanted]
    host = [*sorted((csrc / "cuda").glob("*.cpp")), csrc / "module_cuda.cpp", HERE / "machine.cpp"]
    if len(wanted) < len(INSTANCES):
        host.append(absent([name for name in INSTANCES if name not in wanted]))
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(lambda path: compile_one(path, csrc, flags), [*kernels, *host]))
    target = CACHE / f"{digest(*[path.name for path in objects])}.so"
    if not target.exists():
        made = CACHE / f"{os.getpid()}.so"
        link = ["g++", "-shared", *(SANITIZE[:1] if sanitize else []), *objects, "-o", made]
        subprocess.run(link, check=True)
        made.rename(target)  # whole or not at all
    return target


def compile_one(path: Path, csrc: Path, flags: list[str]) -> Path:
    """The object of one source, from a cache named after all that it may include."""
    import pybind11

    headers = [*csrc.rglob("*.h"), *HERE.rglob("*.h")]
    if path.suffix == ".cu":
        headers += [*csrc.rglob("*.cuh"), *HERE.rglob("*.cuh")]
    key = digest(*flags, sys.version, *(p.read_text() for p in [path, *sorted(headers)]))
    target = CACHE / f"{path.stem}-{key}.o"
    if not target.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        include = [f"-I{HERE}", f"-I{csrc}", f"-I{pybind11.get_include()}"]
        include.append(f"-I{sysconfig.get_paths()['include']}")
        made = CACHE / f"{path.stem}-{os.getpid()}.o"
        command = ["g++", *flags, *include, "-x", "c++", "-c", path, "-o", made]
        subprocess.run(command, check=True)
        made.rename(target)
    return target


def absent(names: list[str]) -> Path:
    """A source with the functions of instances that are left out."""
    lines = ["#include <stdexcept>", '#include "cuda/instances.h"', "namespace msk::gpu {"]
    for name in names:
        lines.append(
            f"void {name}(const Problem&, int, void*) "
            f'{{ throw std::runtime_error("{name} is left out"); }}'
        )
    text = "\n".join([*lines, "}  // namespace msk::gpu", ""])
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"absent_{digest(text)}.cpp"
    path.write_text(text)
    return path


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


@functools.cache
def module(csrc: Path = CSRC, instances: tuple[str, ...] = ()):
    """The module, built and loaded."""
    path = build(csrc, instances)
    # A name for each build: pybind11 gives the first module of a name again.
    spec = importlib.util.spec_from_file_location(f"host_gpu.{path.stem}._cuda", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
