"""Step "machine": what this machine is, which backends it has, and the ceilings of its GPU."""

import argparse
import shutil
import subprocess
import sys
from pathlib import Path

import ms_kernels
from bench import gpu_ceilings, gpu_machine
from bench.gpu_device import REHEARSED, no_device

PACKAGES = ("torch", "triton", "numpy", "pytest", "pytest-xdist", "pybind11", "cmake", "ninja")
PACKAGES += ("hypothesis", "matplotlib", "pytorch-metric-learning")


def first_line(*command: str) -> str | None:
    """Of a tool's version, or None where the tool is not here."""
    if shutil.which(command[0]) is None:
        return None
    done = subprocess.run(command, capture_output=True, text=True)
    lines = [line for line in done.stdout.splitlines() if "release" in line or "Version" in line]
    return (lines or [done.stdout.strip()])[0].strip()


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu_proof.machine", description=__doc__)
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines")
    options = parser.parse_args(arguments)
    if why := no_device():
        print(f"machine: {why}")
        return 2
    record = gpu_machine.record(options.results)
    if shutil.which("nvidia-smi"):
        subprocess.run(["nvidia-smi"])
    built = {name: list(state) for name, state in ms_kernels.backends().items()}
    software = {
        "packages": {name: gpu_machine.version_of(name) for name in PACKAGES},
        "nvcc": first_line("nvcc", "--version"),
        "ncu": first_line("ncu", "--version"),
        "compute-sanitizer": first_line("compute-sanitizer", "--version"),
        "backends": built,
    }
    record.add("software", (), software)
    for name, (available, note) in built.items():
        print(f"{name:10} {'yes' if available else 'no':4} {note}")
    failed = gpu_ceilings.main(["--results", str(options.results)])
    record.add("clocks", ("after the ceilings",), {"nvidia_smi": gpu_machine.clocks()})
    missing = [name for name in ("cuda", "triton") if not built[name][0]]
    if missing and not REHEARSED:
        print(f"FAILED: not usable on this GPU: {', '.join(missing)}")
    return int(failed or (bool(missing) and not REHEARSED))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
