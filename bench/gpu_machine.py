"""What a GPU result was measured on."""

import datetime
import functools
import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import ms_kernels
from bench import gpu_sources
from bench.gpu_device import device
from bench.gpu_record import Record

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "bench" / "results"
QUERY = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.draw,power.limit,temperature.gpu"
)


def clocks() -> str:
    """What nvidia-smi says of the device at this moment; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


@functools.cache
def describe() -> dict[str, Any]:
    state = clocks()
    gpu = device().cuda.get_device_name()
    return {
        "gpu": gpu,
        "driver": state.split(", ")[1] if state else None,
        "nvidia_smi": {"query": QUERY, "start": state},
        "torch": torch.__version__,
        "triton": version_of("triton"),
        "pytorch_metric_learning": version_of("pytorch-metric-learning"),
        "cuda": torch.version.cuda,
        "float32_matmul_precision": torch.get_float32_matmul_precision(),
        "ms_kernels": ms_kernels.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        **gpu_sources.commit(),
        "sources": gpu_sources.measured(),
        "cuda_module": cuda_module(),
        "date": datetime.date.today().isoformat(),
    }


def cuda_module() -> str | None:
    """The digest of what the package's _cuda was built from, if it is here and that is known."""
    found = importlib.util.find_spec("ms_kernels._cuda")
    return gpu_sources.module_sources(Path(found.origin)) if found and found.origin else None


def unlike() -> str | None:
    """Why figures would be given under the name of sources that were not compiled, or None."""
    module, here = cuda_module(), gpu_sources.built()
    if module is None or module == here:
        return None
    return (
        f"ms_kernels._cuda was built from other sources ({module}, here {here}): build it again, "
        "make gpu STEPS=build, or remove it to measure Triton alone"
    )


def record(path: Path | None) -> Record:
    """The file that takes this machine's cases; without a path one of the day in bench/results."""
    if why := unlike():
        sys.exit(why)
    machine = describe()
    name = f"{machine['gpu'].replace(' ', '-')}-{machine['date']}.jsonl"
    target = RESULTS / name if path is None else path
    try:
        return Record(target, machine)
    except OSError as error:  # before any work
        sys.exit(f"--results: expected a file that can be written, got {target}: {error.strerror}")


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
