"""Builds the CUDA kernels for the CPU: their sources unchanged, with the headers of this folder
found before csrc/cuda/core/ptx.cuh, grid_barrier.cuh and CUDA's own."""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
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
# Tells of every load and store of a kernel: see global_memory.h.
TRACK = ["-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", "-g1"]
PATHS = ("batch", "small", "tiled")
OPERANDS = ("bfloat16", "float16", "float32", "float64", "rounded", "tf32")
# What csrc/cuda/instance.cu is compiled for.
INSTANCES = [f"{path}_{operand}" for path in PATHS for operand in OPERANDS]


def why_not() -> str | None:
    if shutil.which("g++") is None:
        return "g++ is not installed"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    return None


def build(
    csrc: Path = CSRC,
    instances: tuple[str, ...] = (),
    sanitize: bool = False,
    track: bool = False,
    once: bool = False,
) -> Path:
    """The module of these sources. `instances`: only these; a call of another type throws.

    track: each load and store of the kernels is seen by the machine, at five times the time.
    once: for a call or two, compiled in less time than it then takes.
    """
    wanted = list(instances) or INSTANCES
    kernels = [(csrc / "cuda" / "instance.cu", name) for name in wanted]
    host = [*(csrc / "cuda" / "host").glob("*.cpp"), csrc / "module_cuda.cpp", *HERE.glob("*.cpp")]
    if len(wanted) < len(INSTANCES):
        host.append(absent([name for name in INSTANCES if name not in wanted]))
    return link(kernels, host, csrc, sanitize, track, once)


def races() -> Path:
    """The small kernels of races.cu, tracked."""
    return link([(HERE / "races.cu", None)], [*HERE.glob("*.cpp")], CSRC, track=True)


def link(
    kernels: list[tuple[Path, str | None]],
    host: list[Path],
    csrc: Path,
    sanitize: bool = False,
    track: bool = False,
    once: bool = False,
) -> Path:
    of_all = SANITIZE if sanitize else []
    level = "-O0" if sanitize else "-O1" if track or once else "-O2"
    of_kernels = [*of_all, level, *(TRACK if track else [])]

    def compiled(source: tuple[Path, str | None]) -> Path:
        path, instance = source
        if path.suffix == ".cu":
            return compile_one(path, csrc, of_kernels, instance)
        # The machine runs at each step of a kernel; the rest once a call, and pybind11 is slow.
        if path.name == "module_cuda.cpp":  # it touches no memory of a tensor
            return compile_one(path, csrc, ["-O0"])
        return compile_one(path, csrc, [*of_all, "-O3" if path.parent == HERE else "-O0"])

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compiled, [*kernels, *((path, None) for path in sorted(host))]))
    target = CACHE / f"{digest(*[path.name for path in objects])}.so"
    if not target.exists():
        made = CACHE / f"{os.getpid()}.so"
        subprocess.run(["g++", "-shared", *of_all[:1], *objects, "-o", made], check=True)
        made.rename(target)  # whole or not at all
    return target


def chosen(instance: str) -> list[str]:
    """How a compiler is told which instance csrc/cuda/instance.cu is."""
    path, operand = instance.split("_")
    return [f"-DMSK_PATH={path}", f"-DMSK_OPERAND={operand}"]


def compile_one(path: Path, csrc: Path, flags: list[str], instance: str | None = None) -> Path:
    """The object of one source, from a cache named after all that it includes of ours."""
    import pybind11

    roots = [path]
    if instance is not None:
        flags = [*flags, *chosen(instance)]
        folder = instance.split("_")[0]
        roots.append(csrc / "cuda" / folder / f"{folder}.cuh")
    sources = included(roots, (HERE, csrc))
    key = digest(*FLAGS, *flags, sys.version, *(p.read_text() for p in sources))
    name = instance or path.stem
    target = CACHE / f"{name}-{key}.o"
    with compiled_by_one(target) as missing:
        if not missing:
            return target
        include = [f"-I{HERE}", f"-I{csrc}", f"-I{pybind11.get_include()}"]
        include.append(f"-I{sysconfig.get_paths()['include']}")
        made = CACHE / f"{name}-{os.getpid()}.o"
        command = ["g++", *FLAGS, *flags, *include, "-x", "c++", "-c", path, "-o", made]
        subprocess.run(command, check=True)
        made.rename(target)
    return target


@contextlib.contextmanager
def compiled_by_one(target: Path) -> Iterator[bool]:
    """Whether it is still to be made: of several processes one does, the others wait for it."""
    (CACHE / "locks").mkdir(parents=True, exist_ok=True)
    with (CACHE / "locks" / target.stem).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield not target.exists()


def included(sources: list[Path], folders: tuple[Path, ...]) -> list[Path]:
    """The sources and what they include of these folders, in the order of first mention."""
    found = list(sources)
    for path in found:  # which grows meanwhile
        for name in re.findall(r'^#include "(.+)"', path.read_text(), re.MULTILINE):
            header = next((f / name for f in (path.parent, *folders) if (f / name).exists()), None)
            if header is not None and header not in found:
                found.append(header)
    return found


def absent(names: list[str]) -> Path:
    """A source with the functions of instances that are left out."""
    lines = ["#include <stdexcept>", '#include "cuda/host/instances.h"', "namespace msk::gpu {"]
    for name in names:
        lines.append(
            f"void {name.replace('_', '::')}(const Problem&, int, void*) "
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
def module(
    csrc: Path = CSRC,
    instances: tuple[str, ...] = (),
    track: bool = False,
    once: bool = False,
):
    """The module, built and loaded."""
    return load(build(csrc, instances, track=track, once=once))


def load(path: Path):
    # A name for each build: pybind11 gives the first module of a name again.
    spec = importlib.util.spec_from_file_location(f"host_gpu.{path.stem}._cuda", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
