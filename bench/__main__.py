"""python -m bench [family | tasks | memory | distributed | compat | retrieval | walk] [quick]: a
training step on the CPU, measured.

Without a word: time and peak memory, then the table and the plots. family: the other pair losses
(bench/family.py), tasks: place recognition, CLIP and SigLIP (bench/tasks.py), memory: a cross-batch
memory (bench/cross_batch.py), distributed: several processes (bench/processes.py), compat: a
changed import line (bench/compat.py), retrieval: what losses retrieve after a training
(bench/retrieval.py), walk: the training of docs/retrieval.md (bench/walk.py).
"""

import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from tqdm import tqdm

import ms_kernels
from bench import (
    compat,
    cross_batch,
    family,
    memory,
    processes,
    report,
    retrieval,
    tables,
    tasks,
    walk,
)
from bench.cases import DEPTHS
from ms_kernels.backends import cpu
from ms_kernels.tools.command_line import check_output

MEMORY_SIZES = (512, 1024, 2048, 4096, 8192, 16384, 32768)
# What a candidate needs grows as N squared: above these it would not fit 24 GiB, or take minutes.
MOST_ROWS = {
    "ours": 32768,
    "panels": 8192,
    "dense": 8192,
    "compiled": 8192,
    "metric_learning": 8192,
}


KINDS = {
    "family": family.run,
    "tasks": tasks.run,
    "memory": cross_batch.run,
    "distributed": processes.run,
    "compat": compat.run,
    "retrieval": retrieval.run,
    "walk": walk.run,
}


def parse(arguments: list[str]) -> tuple[str | None, bool]:
    """What is measured, and whether quickly; exits with what was wanted."""
    kinds = [word for word in arguments if word in KINDS]
    if len(kinds) > 1 or set(arguments) - {"quick", *KINDS}:
        wanted = ", ".join(map(repr, KINDS))
        sys.exit(
            f"bench: expected nothing or one of {wanted}, and perhaps 'quick', got "
            f"{' '.join(arguments)!r}"
        )
    return (kinds or [None])[0], "quick" in arguments


def machine() -> dict[str, object]:
    from ms_kernels import _cpu

    name = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((ln.split(":")[1].strip() for ln in lines if ln.startswith("model name")), name)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True)
    return {
        "cpu": name,
        "instruction_set": _cpu.instruction_set(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 1),  # before any of this
        # On a busy machine threads that wait by spinning take ten times as long for small work.
        "wait_policy": os.environ.get("OMP_WAIT_POLICY", "").lower(),
        "torch": torch.__version__,
        "ms_kernels": ms_kernels.__version__,
        "pytorch_metric_learning": importlib.metadata.version("pytorch-metric-learning"),
        "python": platform.python_version(),
        "commit": commit.stdout.strip(),
        "date": datetime.date.today().isoformat(),
    }


def times() -> list[dict[str, object]]:
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "times.json"
        file = Path(__file__).with_name("test_step.py")
        command = [sys.executable, "-m", "pytest", file, "-v", "--benchmark-enable"]
        command += [f"--benchmark-json={target}", "--benchmark-columns=median,iqr,rounds"]
        subprocess.run(command, check=True)
        return [b["extra_info"] for b in json.loads(target.read_text())["benchmarks"]]


def peaks(sizes: tuple[int, ...]) -> list[dict[str, object]]:
    if not sys.platform.startswith("linux"):
        print("peak memory: known on Linux only, left out")
        return []
    jobs = [(k, n, d) for d in DEPTHS for n in sizes for k, most in MOST_ROWS.items() if n <= most]
    return [
        {"candidate": name, "n": n, "d": d, "bytes": memory.measure(name, n, d)}
        for name, n, d in tqdm(jobs, desc="peak memory", unit="process")
    ]


def main() -> None:
    kind, quick = parse(sys.argv[1:])
    if reason := cpu.missing():
        sys.exit(f"bench: {reason}")
    if kind is not None:
        return KINDS[kind](machine(), quick)
    name = "quick" if quick else f"cpu-{datetime.date.today().isoformat()}"
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    check_output("bench", "results", path)
    os.environ["MSK_BENCH"] = "quick" if quick else "full"
    found = {
        "machine": machine(),
        "times": times(),
        "memory": peaks(MEMORY_SIZES[:2] if quick else MEMORY_SIZES),
    }
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nresults: {path}\n")
    print(report.table(found))
    if not quick:
        tables.publish()


if __name__ == "__main__":
    main()
