"""Page and plot of the family, from a result file of `python -m bench family`."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from bench import tasks_report
from bench.baselines import PEER
from bench.report import mebibytes, save

MARKERS = {512: ("o", "#56B4E9"), 2048: ("s", "#0072B2"), 8192: ("D", "#D55E00")}


def headline(found: dict[str, Any]) -> str:
    """README's share: every loss at the middle size."""
    sizes = sorted({row["n"] for row in found["family"]})
    middle = sizes[len(sizes) // 2]
    more = "All of it: [docs/benchmark_family.md](docs/benchmark_family.md)."
    return f"{table(found, lambda row: row['n'] == middle)}\n\n{more}"


def table(found: dict[str, Any], chosen: Callable[[dict[str, Any]], bool] = lambda _: True) -> str:
    """Markdown: milliseconds and MiB of both, and how many times longer the peer takes."""
    machine = found["machine"]
    shape = found["shape"]
    lines = [
        f"One training step (loss and gradient), float32, D = {shape['d']}, {shape['per_class']} "
        f"samples a class, {machine['threads']} threads of {machine['cpu']}, torch "
        f"{machine['torch']}, pytorch-metric-learning {machine['pytorch_metric_learning']}, "
        f"{machine['date']}, commit {machine['commit']}. Medians of interleaved rounds, the ratio "
        "that of the ratios of single rounds; peak resident memory beyond the embeddings and "
        "their gradient.",
        "",
        "| loss | N | ms_kernels | pytorch-metric-learning | times longer | memory | its memory |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in filter(chosen, found["family"]):
        ours, peer = row["times"]["ours"], row["times"].get(PEER)
        theirs = (row["left_out"], "")
        if peer is not None:
            theirs = (f"{peer['step'] * 1e3:.1f} ms", f"{peer['ratio']:.1f}x")
        memory = " | ".join(mebibytes(row["bytes"].get(who)) for who in ("ours", PEER))
        lines.append(
            f"| {row['member']} | {row['n']} | {ours['step'] * 1e3:.1f} ms | {theirs[0]} | "
            f"{theirs[1]} | {memory} |"
        )
    return "\n".join(lines)


def plot(found: dict[str, Any], path: Path) -> None:
    """How many times longer the peer's step takes, one line for each loss."""
    compared = [row for row in found["family"] if PEER in row["times"]]
    largest = {row["member"]: row["times"][PEER]["ratio"] for row in compared}  # the last size
    order = sorted(largest, key=lambda name: largest[name])
    figure, axes = plt.subplots(figsize=(8, 4.8), layout="constrained")
    for n, (marker, color) in MARKERS.items():
        points = [
            (row["times"][PEER]["ratio"], order.index(row["member"]))
            for row in compared
            if row["n"] == n
        ]
        if points:
            axes.scatter(*zip(*points, strict=True), marker=marker, color=color, label=f"N = {n}")
    axes.axvline(1, color="#999999", lw=1)
    where = "where it fits 16 GiB"
    axes.set(xscale="log", xlabel=f"pytorch-metric-learning takes so many times longer, {where}")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_yticks(range(len(order)), order)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title("A training step of each loss on the CPU")
    axes.legend(frameon=False, loc="lower right")
    save(figure, path, found)


def page(found: dict[str, Any], tasks: dict[str, Any] | None) -> str:
    """tasks: of `python -m bench tasks`."""
    title = "# The family, measured\n\n`python -m bench family` measures it.\n\n"
    picture = "![How many times longer the peer takes](bench_family.png)\n\n"
    beside = "## Place recognition, CLIP and SigLIP\n\n"
    shown = tasks_report.NOT_YET if tasks is None else tasks_report.table(tasks)
    return f"{title}{picture}{table(found)}\n\n{beside}{shown}\n"
