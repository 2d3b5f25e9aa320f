"""Tables and plots of the CPU backend, from a result file of `python -m bench`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from bench.baselines import LABELS
from bench.gpu_record import digest

COMPARED = ("dense", "compiled", "metric_learning", "row_loop")
KEEPS = {"early": "half", "mid": "5%", "late": "0.05%"}
# Okabe and Ito's palette: distinct for colour-blind readers too.
COLORS = {
    "ours": "#0072B2",
    "compiled": "#E69F00",
    "dense": "#009E73",
    "metric_learning": "#CC79A7",
    "row_loop": "#999999",
    "panels": "#56B4E9",
}


def steps(found: dict[str, Any]) -> list[dict[str, Any]]:
    return [case for case in found["times"] if case["kind"] == "step"]


def headline(case: dict[str, Any]) -> bool:
    """README shows the middle of a training at D = 512, and all of it for one large batch."""
    return case["d"] == 512 and (case["regime"] == "mid" or case["n"] == 4096)


def table(found: dict[str, Any], chosen: Callable[[dict[str, Any]], bool] = lambda _: True) -> str:
    """Markdown: our milliseconds, and how many times longer each of the others takes."""
    machine = found["machine"]
    lines = [
        f"One training step (loss and gradient), float32, {machine['threads']} threads of "
        f"{machine['cpu']} ({machine['instruction_set']}), torch {machine['torch']}, "
        f"{machine['date']}. Medians of interleaved rounds; the last columns say how many times "
        "longer the others take.",
        "",
        "| N | D | regime | negatives kept | ms_kernels | "
        + " | ".join(LABELS[name] for name in COMPARED)
        + " |",
        "|--:|--:|---|--:|--:|" + "--:|" * len(COMPARED),
    ]
    for case in filter(chosen, steps(found)):
        ours = case["candidates"]["ours"]["step"] * 1e3
        ratios = [case["candidates"].get(name, {}).get("ratio") for name in COMPARED]
        lines.append(
            f"| {case['n']} | {case['d']} | {case['regime']} | {case['kept']:.2%} "
            f"| {ours:.{2 if ours < 10 else 1}f} ms | "
            + " | ".join("" if r is None else f"{r:.{1 if r < 100 else 0}f}x" for r in ratios)
            + " |"
        )
    return "\n".join(lines)


def plot_time(found: dict[str, Any], path: Path) -> None:
    figure, panels = plt.subplots(1, 3, figsize=(13, 4.6), sharey=True, layout="constrained")
    for axes, regime in zip(panels, ("early", "mid", "late"), strict=True):
        cases = [c for c in steps(found) if c["regime"] == regime and c["d"] == 512]
        for name in ("ours", *COMPARED):
            points = [
                (c["n"], 1e3 * c["candidates"][name]["step"])
                for c in cases
                if name in c["candidates"]
            ]
            _line(axes, name, sorted(points))
        axes.set_title(f"{regime}: mining keeps {KEEPS[regime]} of the negatives")
        _log_axes(axes, [c["n"] for c in cases])
        axes.set_xlabel("batch size N (D = 512)")
    panels[0].set_ylabel("training step (ms)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    save(figure, path, found)


def plot_memory(found: dict[str, Any], path: Path) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.6), layout="constrained")
    rows = [row for row in found["memory"] if row["d"] == 512]
    for name in ("ours", "panels", "compiled", "dense", "metric_learning"):
        points = [(r["n"], r["bytes"] / 2**20) for r in rows if r["candidate"] == name]
        # Below one MiB resident memory counts pages, not the loss.
        _line(axes, name, sorted(p for p in points if p[1] >= 1))
    _log_axes(axes, [r["n"] for r in rows])
    axes.set(xlabel="batch size N (D = 512)", ylabel="peak memory of a step (MiB)")
    axes.set_title("Memory beyond the embeddings and their gradient")
    axes.legend(frameon=False)
    save(figure, path, found)


def _line(axes: Axes, name: str, points: list[tuple[int, float]]) -> None:
    if points:
        wide = 3 if name == "ours" else 1.6
        axes.plot(*zip(*points, strict=True), "o-", color=COLORS[name], lw=wide, label=LABELS[name])


def _log_axes(axes: Axes, sizes: list[int]) -> None:
    ticks = sorted(set(sizes))
    axes.set(xscale="log", yscale="log")
    axes.set_xticks(ticks, [str(n) for n in ticks])
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def page(found: dict[str, Any]) -> str:
    return f"# A training step, measured\n\n`make bench` measures it.\n\n{table(found)}\n"


def mebibytes(number: int | None) -> str:
    """Of a peak, empty where none is known."""
    return "" if number is None else f"{number / 2**20:.1f} MiB"


def save(figure: Figure, path: Path, found: Any) -> None:
    """With a digest of what is drawn, by which a picture and its results can be compared."""
    figure.savefig(path, dpi=110, metadata={"Source": digest_of(found)})
    plt.close(figure)


def digest_of(found: Any) -> str:
    return digest(json.dumps(found, sort_keys=True))
