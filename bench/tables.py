"""python -m bench.tables: the tables and plots of README and docs, from what bench/results holds.

Of each kind the latest file is shown: cpu-*.json, family-*.json, tasks-*.json, memory-*.json,
distributed-*.json, compat-*.json, retrieval-*.json, walk-*.json, and *.jsonl of a GPU (also in a
folder, as `make gpu RESULTS=folder` fills it).
"""

import json
import sys
from pathlib import Path
from typing import Any

from bench import (
    compat_report,
    family_report,
    gpu_plot,
    gpu_report,
    report,
    retrieval_report,
    scaling_report,
    walk,
)
from bench.gpu_record import Case, latest, read

ROOT = Path(__file__).parent.parent
NO_GPU = (
    "Nothing has been measured on a GPU yet: `make gpu RESULTS=folder` is the command that does."
)
CPU, FAMILY = ("cpu-*.json", "times"), ("family-*.json", "family")
TASKS = ("tasks-*.json", "tasks")
SCALING = {name: (f"{name}-*.json", name) for name in ("memory", "distributed")}
COMPAT = ("compat-*.json", "compat")
RETRIEVAL, WALK = ("retrieval-*.json", "retrieval"), ("walk-*.json", "walk")
GPU_PAGE, SCALING_PAGE = "docs/benchmark_gpu.md", "docs/scaling.md"
COMPAT_PAGE = "docs/compat.md"
RETRIEVAL_PAGE = "docs/retrieval.md"


def newest(results: Path, pattern: str, part: str) -> Any | None:
    files = sorted(results.glob(pattern))
    return load(files[-1], part) if files else None


def load(path: Path, part: str) -> Any:
    """A result file; exits unless it has such a part."""
    wanted = f"bench.tables: expected {path} to have {part!r}, as `python -m bench` writes it"
    try:
        found = json.loads(path.read_text())
    except ValueError as error:
        sys.exit(f"{wanted}, got no JSON: {error}")
    if not isinstance(found, dict) or not {part, "machine"} <= set(found):
        sys.exit(f"{wanted}, got another kind of file")
    return found


def gpu_cases(results: Path) -> list[Case]:
    """Of the latest file; those of rehearsals are no results."""
    for path in sorted(results.glob("**/*.jsonl"), key=date_of, reverse=True):
        cases = latest(read(path))
        if any(c["kind"] == "machine" and c["gpu"] != "stand-in" for c in cases):
            return cases
    return []


def date_of(path: Path) -> tuple[str, str]:
    dates = [case.get("date", "") for case in read(path) if case["kind"] == "machine"]
    return max(dates, default=""), str(path)


def pages(root: Path = ROOT) -> dict[str, str]:
    """Path below the root: what the page should say."""
    results = root / "bench" / "results"
    readme = (root / "README.md").read_text()
    found = {}
    cpu, family = newest(results, *CPU), newest(results, *FAMILY)
    if cpu is not None:
        found["docs/benchmark.md"] = report.page(cpu)
        readme = region(readme, "bench", report.table(cpu, report.headline))
    if family is not None:
        found["docs/benchmark_family.md"] = family_report.page(family, newest(results, *TASKS))
        readme = region(readme, "family", family_report.headline(family))
    scaling = {name: newest(results, *place) for name, place in SCALING.items()}
    if any(scaling.values()):
        text = (root / SCALING_PAGE).read_text()
        found[SCALING_PAGE] = fill(text, scaling)
    compat = newest(results, *COMPAT)
    if compat is not None:
        text = (root / COMPAT_PAGE).read_text()
        found[COMPAT_PAGE] = region(text, "compat", compat_report.table(compat))
    retrieval, walked = newest(results, *RETRIEVAL), newest(results, *WALK)
    if retrieval is not None or walked is not None:
        found[RETRIEVAL_PAGE] = retrieval_page(root, retrieval, walked)
    gpu = gpu_cases(results)
    if gpu:
        found[GPU_PAGE] = gpu_report.page(gpu)
    readme = region(readme, "gpu", gpu_report.headline(gpu) if gpu else NO_GPU)
    return {**found, "README.md": readme}


def retrieval_page(root: Path, retrieval: Any | None, walked: Any | None) -> str:
    text = (root / RETRIEVAL_PAGE).read_text()
    if retrieval is not None:
        text = region(text, "ablation", retrieval_report.ablation_table(retrieval))
        text = region(text, "cost", retrieval_report.cost_table(retrieval))
    return text if walked is None else region(text, "walk", walk.text(walked))


def region(text: str, name: str, content: str) -> str:
    """The text with what stands between the marks of that name replaced."""
    start, end = f"<!-- {name}:start -->", f"<!-- {name}:end -->"
    before, rest = text.split(start)
    after = rest.split(end)[1]
    return f"{before}{start}\n{content}\n{end}{after}"


def fill(text: str, scaling: dict[str, Any]) -> str:
    """The text with the tables of what was measured between their marks."""
    makers = {
        "memory": scaling_report.memory_table,
        "distributed": scaling_report.distributed_table,
    }
    for name, table in makers.items():
        if scaling[name] is not None:
            text = region(text, name, table(scaling[name]))
    return text


def plots(root: Path = ROOT) -> dict[str, tuple[Any, Any]]:
    """Path below the root: what draws the picture, and of which results."""
    results = root / "bench" / "results"
    found: dict[str, tuple[Any, Any]] = {}
    cpu, family = newest(results, *CPU), newest(results, *FAMILY)
    if cpu is not None:
        found["docs/bench_time.png"] = report.plot_time, cpu
        if cpu["memory"]:
            found["docs/bench_memory.png"] = report.plot_memory, cpu
    if family is not None:
        found["docs/bench_family.png"] = family_report.plot, family
    scaling = {name: newest(results, *place) for name, place in SCALING.items()}
    if any(scaling.values()):
        found["docs/bench_scaling.png"] = scaling_report.plot, scaling
    retrieval = newest(results, *RETRIEVAL)
    if retrieval is not None:
        found["docs/bench_retrieval.png"] = retrieval_report.plot, retrieval
    if steps := [case for case in gpu_cases(results) if case["kind"] == "step"]:
        found["docs/bench_gpu.png"] = gpu_plot.plot, steps
    return found


def publish(root: Path = ROOT) -> None:
    for name, text in pages(root).items():
        (root / name).write_text(text)
    for name, (draw, found) in plots(root).items():
        draw(found, root / name)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        got = " ".join(sys.argv[1:])
        sys.exit(f"bench.tables: expected nothing, since bench/results is read, got {got}")
    publish()
    print("written:", *pages(), *plots())
