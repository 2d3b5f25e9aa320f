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
FLAGS = ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-ffp-contract=off", "-Wall", "-Wextra"]
FLAGS += ["-Werror", "-Wno-unknown-pragmas", '-DMSK_CUDA_ARCHITECTURES="host"']
SANITIZE = ["-fsanitize=address", "-fno-omit-frame-pointer", "-g1"]


def why_not() -> str | None:
    if shutil.which("g++") is None:
        return "g++ is not installed"
    if importlib.util.find_spec("pybind11") is None:
        return "pybind11 is not installed"
    return None


def sources(csrc: Path) -> list[Path]:
    found = sorted((csrc / "cuda").glob("batch_*.cu"))
    return [*found, *sorted((csrc / "cuda").glob("*.cpp")), csrc / "module_cuda.cpp"]


def build(csrc: Path = CSRC, only: str | None = None, sanitize: bool = False) -> Path:
    """The module for these sources, from a folder named after what went into it.

    `only`: compile this one instance (batch_<only>.cu); the other types stay without a function,
    which a module only looks for when it is called.
    """
    flags = [*FLAGS, *(["-O1", *SANITIZE] if sanitize else ["-O3"])]
    texts = sorted([*csrc.rglob("*.*"), *HERE.rglob("*.*h"), *HERE.glob("*.cpp")])
    digest = hashlib.sha256(repr((flags, only, sys.version)).encode())
    for path in texts:
        digest.update(path.read_bytes())
    folder = ROOT / "build" / "host_gpu" / digest.hexdigest()[:16]
    target = folder / "_cuda.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    import pybind11

    include = [f"-I{HERE}", f"-I{csrc}", f"-I{pybind11.get_include()}"]
    include.append(f"-I{sysconfig.get_paths()['include']}")
    files = [*sources(csrc), HERE / "machine.cpp"]
    if only is not None:
        files = [f for f in files if f.suffix != ".cu" or f.stem == f"batch_{only}"]

    def compile_one(path: Path) -> Path:
        out = folder / f"{path.name}.o"
        command = ["g++", *flags, *include, "-x", "c++", "-c", path, "-o", out]
        subprocess.run(command, check=True)
        return out

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, files))
    made = folder / f"_cuda.{os.getpid()}"
    link = ["g++", "-shared", *(SANITIZE[:1] if sanitize else []), *objects, "-o", made]
    subprocess.run(link, check=True)
    made.rename(target)  # whole or not at all
    return target


@functools.cache
def load(path: Path):
    spec = importlib.util.spec_from_file_location("_cuda", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
