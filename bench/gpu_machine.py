"""What a GPU result was measured on, and the files that keep it."""

import datetime
import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

import torch

import ms_kernels

QUERY = (
    "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,clocks.max.mem,"
    "power.draw,power.limit,temperature.gpu"
)
# Of two results in one file these must be the same.
SAME = ("gpu", "driver", "torch", "triton", "cuda", "commit")


def clocks() -> str:
    """What nvidia-smi says of the device at this moment; empty without it."""
    if shutil.which("nvidia-smi") is None:
        return ""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def describe(gpu: str) -> dict[str, Any]:
    state = clocks()
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
        "commit": _git("rev-parse", "--short", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--untracked-files=no")),
        "date": datetime.date.today().isoformat(),
    }


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    try:
        folder = Path(__file__).parent
        command = ["git", *arguments]
        return subprocess.run(command, cwd=folder, capture_output=True, text=True).stdout.strip()
    except OSError:
        return ""


class Store:
    """<stem>.json, rewritten after each case, and <stem>.log beside it."""

    def __init__(self, stem: Path, machine: dict[str, Any], rate: dict[str, float]) -> None:
        self.path = stem.with_name(stem.name + ".json")
        self.log = stem.with_name(stem.name + ".log")
        self.head = {"machine": machine, "rate": rate}
        self.cases: list[dict[str, Any]] = []
        stem.parent.mkdir(parents=True, exist_ok=True)
        if self.path.exists():
            old = json.loads(self.path.read_text())
            if all(old["machine"][key] == machine[key] for key in SAME):
                self.cases = old["cases"]

    def add(self, case: dict[str, Any]) -> None:
        """In place of the same case of an earlier run."""
        kept = [old for old in self.cases if _key(old) != _key(case)]
        self.cases = sorted([*kept, case], key=_key)
        self.path.write_text(json.dumps({**self.head, "cases": self.cases}, indent=1) + "\n")

    def say(self, text: str) -> None:
        print(text, flush=True)
        with self.log.open("a") as file:
            file.write(text + "\n")


def _key(case: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(case[name] for name in ("n", "d", "dtype", "regime", "backend"))
