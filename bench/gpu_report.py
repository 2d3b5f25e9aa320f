"""Tables of what a GPU measured, in Markdown, from the cases of bench/gpu_record.py."""

from collections.abc import Sequence
from typing import Any

from bench.baselines import LABELS as CPU_LABELS
from bench.baselines import PEER

Case = dict[str, Any]
LABELS = {
    **CPU_LABELS,
    "cuda": "CUDA",
    "triton": "Triton",
    "one_launch": "CUDA, one launch",
    "tiles": "CUDA, tiles",
    "replayed": "torch.compile, reduce-overhead",
    "autotuned": "torch.compile, max-autotune",
}
OTHERS = ("cuda", "triton", "one_launch", "tiles", "dense", "compiled", "replayed", "autotuned")
OTHERS += ("metric_learning",)


def machine_line(machine: Case) -> str:
    commit = f"commit {machine['commit'] or 'unknown'}"
    commit += ", changed" if machine["changed"] else ""
    commit += ", changed or not: unknown" if machine["changed"] is None else ""
    return (
        f"{machine['gpu']}, driver {machine['driver']}, CUDA {machine['cuda']}, torch "
        f"{machine['torch']}, Triton {machine['triton']}, {machine['date']}, {commit}, sources "
        f"{machine['sources']}."
    )


def page(cases: Sequence[Case]) -> str:
    """All that was measured on one machine."""
    kinds: dict[str, list[Case]] = {}
    for case in cases:
        kinds.setdefault(case["kind"], []).append(case)
    parts = ["# A GPU, measured", "`make gpu RESULTS=folder` measures it."]
    parts += [machine_line(machine) for machine in kinds.get("machine", [])]
    tables = {
        "ceiling": ("Ceilings", ceiling_table),
        "latency": ("A small step", latency_table),
        "step": ("Steps against floors and others", step_table),
        "kernels": ("Kernels of a large step", kernel_table),
        "ncu": ("Counters of the main kernels", counter_table),
        "family": ("The family", family_table),
        "memory": ("A cross-batch memory", memory_table),
    }
    for kind, (title, table) in tables.items():
        if kind in kinds:
            parts += [f"## {title}", table(kinds[kind])]
    if "step" in kinds:
        parts.append("![Time of a training step](bench_gpu.png)")
    if "outcome" in kinds:
        parts += ["## What ran", outcome_table(kinds["outcome"])]
    if "test" in kinds:
        parts += ["## Tests", test_table(kinds["test"])]
    return "\n\n".join(parts) + "\n"


def headline(cases: Sequence[Case]) -> str:
    """README's share: the middle of a training at D = 512."""
    machine = next(case for case in reversed(cases) if case["kind"] == "machine")
    steps = [c for c in cases if c["kind"] == "step" and (c["d"], c["regime"]) == (512, "mid")]
    more = "All of it: [docs/benchmark_gpu.md](docs/benchmark_gpu.md)."
    where = f"{machine['gpu']}, torch {machine['torch']}, commit {machine['commit']}"
    what = (
        f"One training step at D = 512 on an {where}: loss and gradient, in ordinary eager calls. "
        "Up to about 4,096 rows most of it is launch overhead on the host, which a CUDA graph "
        "avoids. Ratios are medians of per-round ratios, so they need not be the quotient of two "
        "medians."
    )
    return f"{what}\n\n{headline_table(steps)}\n\n{more}"


def headline_table(cases: Sequence[Case]) -> str:
    """Ours, ours in a graph, and what else one would call; peaks of memory."""
    others = ("dense", PEER)
    names = ("dense PyTorch", "pytorch-metric-learning")
    head = ["dtype", "N", "ms_kernels", "in a CUDA graph", *names]
    head += ["peak", *(f"peak, {name}" for name in names)]
    lines = []
    for case in by_shape(cases):
        ours, *rest = (case["candidates"].get(name, {}) for name in ("ours", *others))
        line = [case["dtype"], f"{case['n']:,}", time(ours.get("gpu")), time(ours.get("graph"))]
        for found in rest:
            ratio = f" ({found['ratio']:.2g}x)" if "ratio" in found else ""
            line.append((time(found.get("gpu")) or why(found)) + ratio)
        line += [mebibytes(found.get("peak_bytes")) for found in (ours, *rest)]
        lines.append(line)
    return rows(head, lines, 1)


def outcome_table(cases: Sequence[Case]) -> str:
    lines = [[c["step"], c["state"], c["detail"], f"{c['seconds']:.0f} s"] for c in cases]
    return rows(["step", "state", "detail", "time"], lines, 3)


def test_table(cases: Sequence[Case]) -> str:
    """Tests of each file by outcome, and below it those that failed."""
    outcomes = ("passed", "failed", "cut off", "skipped")
    files: dict[str, dict[str, int]] = {}
    for case in cases:
        counts = files.setdefault(case["key"][1].partition("::")[0], dict.fromkeys(outcomes, 0))
        counts[case["outcome"]] += 1
    lines = [[f"`{file}`", *map(str, counts.values())] for file, counts in sorted(files.items())]
    table = rows(["file", *outcomes], lines, 1)
    failed = [case for case in cases if case["outcome"] == "failed"]
    told = [f"- `{case['key'][1]}`: {_error_of(case)}" for case in failed]
    return "\n".join([table, "", *told]).rstrip()


def _error_of(case: Case) -> str:
    """What pytest says that went wrong, in one line."""
    said = [line[1:].strip() for line in case["text"].splitlines() if line.startswith("E ")]
    return (said or [case.get("when", "")])[0][:200]


def counter_table(cases: Sequence[Case]) -> str:
    """Of each kernel that ncu profiled: time, shares of the peak, the first three stalls."""
    head = ["path", "kernel", "time", "SM", "tensor", "memory", "stalls"]
    lines = []
    for case in cases:
        stalls = ", ".join(f"{name} {share:.0%}" for name, share in case["stalls"][:3])
        shares = [
            f"{case[n]:.0f}%" if case[n] is not None else "" for n in ("sm", "tensor", "memory")
        ]
        lines.append(
            [case["path"], f"`{case['kernel'][:50]}`", time(case["seconds"]), *shares, stalls]
        )
    return rows(head, lines, 2)


def rows(head: Sequence[str], lines: Sequence[Sequence[str]], words: int) -> str:
    """A table whose first `words` columns are words, the others numbers."""
    rule = "|---" * words + "|--:" * (len(head) - words) + "|"
    return "\n".join(
        ["| " + " | ".join(head) + " |", rule, *("| " + " | ".join(line) + " |" for line in lines)]
    )


def step_table(cases: Sequence[Case]) -> str:
    """Our GPU time beside its floors, host and graph time, and the others as ratios."""
    merged = by_shape(cases)
    others = [o for o in OTHERS if any(o in case["candidates"] for case in merged)]
    head = ["dtype", "regime", "backend", "N", "D", "kept", "ours", "t1", "3 t1", "host", "graph"]
    head += ["launches", "peak", *(LABELS[name] for name in others)]
    lines = []
    for case in merged:
        found = case["candidates"]
        ours = found.get("ours", {})
        kept = f"{case['kept']:.2%}" if "kept" in case else ""
        line = [case["dtype"], case["regime"], case.get("backend", ""), str(case["n"])]
        line += [str(case["d"]), kept, time(ours.get("gpu")) or why(ours) or case.get("error", "")]
        line += [time(case["floor"]["t1"]), time(case["floor"]["t3"]), time(ours.get("host"))]
        line += [time(ours.get("graph")), str(ours.get("launches") or "")]
        line.append(mebibytes(ours.get("peak_bytes")))
        for name in others:
            ratio = found.get(name, {}).get("ratio")
            line.append(f"{ratio:.2g}x" if ratio else why(found.get(name, {})))
        lines.append(line)
    return rows(head, lines, 3)


def by_shape(cases: Sequence[Case]) -> list[Case]:
    """One case a shape, sorted: the look with torch.compile, where there is one, adds to the other.

    Ratios are taken within one look, so each is right; ours is of the first. Of a huge batch the
    look at one step adds the figures that the rounds do not have.
    """
    found: dict[tuple[Any, ...], Case] = {}
    for case in sorted(cases, key=lambda c: ("eager", "warm", "compiled").index(c["look"])):
        shape = (case["dtype"], case["regime"], case["n"], case["d"])
        if shape in found and found[shape]["candidates"]:
            first = found[shape]["candidates"]
            if case["look"] == "warm":
                first = {n: {**case["candidates"].get(n, {}), **f} for n, f in first.items()}
            found[shape] = {**found[shape], "candidates": {**case["candidates"], **first}}
        else:
            found[shape] = case
    return [found[shape] for shape in sorted(found)]


def latency_table(cases: Sequence[Case]) -> str:
    """Where the microseconds of a small step go."""
    head = ["backend", "dtype", "N", "D", "kernels alone", "step in a graph", "in a cold graph"]
    head += ["eager", "host", "host CPU", "of it the module", "of it native", "graph nodes"]
    lines = []
    for case in cases:
        host = case.get("host", {})
        line = [case["backend"], case["dtype"], str(case["n"]), str(case["d"])]
        line += [time(case.get("kernels_alone")) or case.get("error", ""), time(case.get("graph"))]
        line += [time(case.get("cold")), time(case.get("eager"))]
        line += [time(host.get("step")), time(host.get("step_cpu"))]
        line += [time(host.get("module")), time(host.get("native"))]
        line.append(str(len(case["nodes"])) if "nodes" in case else "")
        lines.append(line)
    return rows(head, lines, 2)


def kernel_table(cases: Sequence[Case]) -> str:
    """Kernels of a large step by their share of it."""
    head = ["backend", "dtype", "regime", "kernel", "N", "D", "launches", "time", "share"]
    lines = []
    for case in cases:
        total = sum(kernel["seconds"] for kernel in case.get("kernels", [])) or 1
        for kernel in case.get("kernels", [])[:12]:
            line = [case["backend"], case["dtype"], case["regime"], f"`{kernel['name'][:60]}`"]
            line += [str(case["n"]), str(case["d"]), f"{kernel['launches']:g}"]
            line += [time(kernel["seconds"]), f"{kernel['seconds'] / total:.0%}"]
            lines.append(line)
    return rows(head, lines, 4)


def family_table(cases: Sequence[Case]) -> str:
    """Every loss: our GPU time, its memory, and the others as multiples."""
    others = ("cuda", "triton", "panels", "metric_learning")
    head = ["loss", "N", "ours", "peak", *(LABELS[name] for name in others)]
    lines = []
    for case in cases:
        ours = case["candidates"].get("ours", {})
        line = [case["member"], str(case["n"])]
        line.append(time(ours.get("gpu")) or why(ours) or case.get("error", ""))
        line.append(mebibytes(ours.get("peak_bytes")))
        for name in others:
            ratio = case["candidates"].get(name, {}).get("ratio")
            line.append(f"{ratio:.2g}x" if ratio else why(case["candidates"].get(name, {})))
        lines.append(line)
    return rows(head, lines, 1)


def memory_table(cases: Sequence[Case]) -> str:
    """A step with a cross-batch memory: our GPU and host time, memory, and the peer's multiple."""
    head = ["dtype", "memory", "N", "D", "ours", "host", "launches", "peak", LABELS[PEER]]
    lines = []
    for case in cases:
        ours, peer = (case["candidates"].get(name, {}) for name in ("ours", PEER))
        line = [case["dtype"], str(case["m"]), str(case["n"]), str(case.get("d", ""))]
        line += [time(ours.get("gpu")) or case.get("error", ""), time(ours.get("host"))]
        line += [str(ours.get("launches") or ""), mebibytes(ours.get("peak_bytes"))]
        line.append(f"{peer['ratio']:.2g}x" if "ratio" in peer else why(peer))
        lines.append(line)
    return rows(head, lines, 1)


def ceiling_table(cases: Sequence[Case]) -> str:
    head = ["ceiling", "a second"]
    units = {"operations": (1e12, "TFLOP"), "bytes": (1e12, "TB")}
    lines = []
    for case in cases:
        scale, unit = units[case["unit"]]
        lines.append(
            [
                case["name"],
                f"{case['per_second'] / scale:.4g} {unit}"
                if "per_second" in case
                else case["error"],
            ]
        )
    return rows(head, lines, 1)


def line(case: Case) -> str:
    """Each candidate in a few letters."""
    if "error" in case:
        return str(case["error"])
    parts = []
    for name, found in case["candidates"].items():
        ratio = f" ({found['ratio']:.2g}x)" if "ratio" in found and name != "ours" else ""
        parts.append(f"{name} {time(found.get('gpu')) or why(found)}{ratio}")
    return ", ".join(parts)


def why(found: Case) -> str:
    return str(found.get("refusal") or found.get("why") or "")


def mebibytes(number: int | None) -> str:
    return "" if number is None else f"{number / 2**20:.1f} MiB"


def time(seconds: float | None) -> str:
    """Three digits with a unit; empty for what was not measured."""
    if seconds is None:
        return ""
    for unit, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")):
        if seconds >= unit or unit == 1e-6:
            return f"{seconds / unit:.3g} {name}"
    raise AssertionError("unreachable")
