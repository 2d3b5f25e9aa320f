"""What this machine and this Python have, asked once, and how a step is started here."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from gpu_proof import carry

ROOT = Path(__file__).parents[2]
CUDA_BIN = "/usr/local/cuda/bin"
# Of a test's tools, what is lost without each.
OPTIONAL = {
    "xdist": "tests run one after the other",
    "matplotlib": "no plots, and no tests of them",
    "pytorch_metric_learning": "that baseline of the bench is left out",
}
PROBE = """
import json, platform, torch
found = torch.cuda.is_available()
print(json.dumps({
    "torch": torch.__version__, "cuda": torch.version.cuda, "available": found,
    "capability": list(torch.cuda.get_device_capability()) if found else None,
    "python": platform.python_version(),
}))
"""


class Site:
    """A machine with a GPU. A rehearsal has one of its own, see rehearsal.py."""

    few_tests = ""  # an expression that leaves tests out
    no_interpreter: str | None = None
    most_workers = 64
    rehearsed = False

    def __init__(self, results: Path) -> None:
        self.results = results
        self.file = results / "results.jsonl"
        self.log = results / "log.txt"

    # How a step is started.

    def environment(self, additions: dict[str, str]) -> dict[str, str]:
        """With the tree and the tests importable, and CUDA's tools found last."""
        python_path = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        python_path.append(str(carry.peer_site() or ""))
        found = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, python_path)),
            "PYTHONUNBUFFERED": "1",
            "PATH": os.pathsep.join([os.environ.get("PATH", ""), CUDA_BIN]),
            "MSK_PROOF_RESULTS": str(self.file),
        }
        compiled = carry.triton_cache()
        if compiled is not None:
            found.setdefault("TRITON_CACHE_DIR", str(compiled))
        return {**found, **additions}

    def module(self, name: str) -> list[str]:
        return [sys.executable, "-m", name]

    def tiny(self, module: str) -> list[str]:
        """Arguments that make a bench tiny: only in a rehearsal."""
        return []

    @property
    def results_option(self) -> list[str]:
        return ["--results", str(self.file)]

    def pytest(self, workers: int) -> list[str]:
        command = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=short", "-o", "addopts="]
        command += ["-p", "gpu_proof.outcomes", "-p", "no:cacheprovider"]
        if workers > 1 and self.importable("xdist"):
            command += ["-n", str(workers), "--dist", "worksteal"]
        return command

    def build_command(self) -> list[str]:
        """Into the folder of the package itself, for the GPU that is here."""
        major, minor = self.probe["capability"] or (9, 0)
        return [
            *self.module("gpu_proof.carry"),
            "--here",
            "--architectures",
            f"{major}{minor}-real",
        ]

    # What is here.

    @cached_property
    def probe(self) -> dict[str, Any]:
        """What torch says, asked of another process: a broken driver may take it along."""
        try:
            done = subprocess.run(
                [sys.executable, "-c", PROBE], capture_output=True, text=True, timeout=90
            )
        except subprocess.TimeoutExpired:
            return {"error": "importing torch and asking for a GPU took more than 90 s"}
        lines = done.stdout.splitlines()
        if done.returncode or not lines:
            return {"error": (done.stderr.strip().splitlines() or ["torch ended silently"])[-1]}
        found: dict[str, Any] = json.loads(lines[-1])
        return found

    @cached_property
    def carried(self) -> str | None:
        """The module built beforehand, put in its place; else None."""
        return carry.place()

    @property
    def no_cuda_module(self) -> str | None:
        """Why there is no CUDA module of the present sources, or None; asked anew after a build."""
        return carry.unusable("_cuda")

    def unfit(self) -> str | None:
        """Why this Python cannot show anything, or None."""
        if not self.importable("torch"):
            return (
                f"{sys.executable} cannot import torch; it needs one with CUDA: install it, or "
                "name a Python that has it, make gpu PYTHON=..."
            )
        if os.environ.get("TRITON_INTERPRET") == "1":
            return "TRITON_INTERPRET=1 would run the kernels on the CPU; unset it"
        if "error" in self.probe:
            return f"torch fails in {sys.executable}: {self.probe['error']}"
        if not self.probe["available"]:
            return (
                f"torch {self.probe['torch']} (CUDA {self.probe['cuda']}) of {sys.executable} sees "
                "no CUDA device; make gpu-rehearsal tries every step without one"
            )
        return None

    def remarks(self) -> list[str]:
        """What is not here and costs part of a step."""
        return [
            f"{name} cannot be imported: {lost}"
            for name, lost in OPTIONAL.items()
            if not self.importable(name)
        ]

    def importable(self, name: str) -> bool:
        try:
            if importlib.util.find_spec(name) is not None:
                return True
        except ModuleNotFoundError:  # its package is not there
            return False
        carried = carry.peer_site()
        return carried is not None and (carried / name).is_dir()

    def unimportable(self, name: str) -> str | None:
        return None if self.importable(name) else f"{sys.executable} cannot import {name}"

    def tool(self, name: str) -> str | None:
        return shutil.which(name) or shutil.which(name, path=CUDA_BIN)

    def lacking(self, *names: str) -> str | None:
        """Which of the tools are not here, or None."""
        found = [name for name in names if self.tool(name) is None]
        return f"{', '.join(found)}: neither on PATH nor in {CUDA_BIN}" if found else None
