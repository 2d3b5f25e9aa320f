"""What a GPU result was measured on."""

import datetime
import functools
import importlib.metadata
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

import ms_kernels
from bench.gpu_device import device
from bench.gpu_record import Record, digest

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
        # A copy of the tree may have no repository: its sources name it too.
        "commit": os.environ.get("MSK_COMMIT") or _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "sources": sources(),
        "date": datetime.date.today().isoformat(),
    }


def sources() -> str:
    """A digest of what is measured: the package, the kernels' sources and this bench."""
    paths = [*ROOT.glob("ms_kernels/**/*.py"), *ROOT.glob("bench/*.py")]
    paths += [path for path in ROOT.glob("csrc/**/*") if path.is_file()]
    return digest(*(path.read_text() for path in sorted(paths)))


def record(path: Path | None) -> Record:
    """The file that takes this machine's cases; without a path one of the day in bench/results."""
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


def _git(*arguments: str) -> str:
    try:
        command = ["git", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""
