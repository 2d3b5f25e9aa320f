"""A plot of GPU steps over batch sizes, from the cases of bench/gpu_record.py."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt

from bench.gpu_cases import DTYPES
from bench.gpu_report import LABELS, Case, by_shape
from bench.report import COLORS, _log_axes, save

DRAWN = ("ours", "dense", "compiled", "replayed", "autotuned", "metric_learning")
MORE_COLORS = {"replayed": "#D55E00", "autotuned": "#F0E442"}


def plot(cases: Sequence[Case], path: Path) -> None:
    """Milliseconds of a step at D = 512, mid, a panel for each dtype."""
    figure, panels = plt.subplots(
        1, len(DTYPES), figsize=(11, 4.6), sharey=True, layout="constrained"
    )
    for axes, dtype in zip(panels, DTYPES, strict=True):
        shown = [
            c for c in by_shape(cases) if (c["dtype"], c["d"], c["regime"]) == (dtype, 512, "mid")
        ]
        for name in DRAWN:
            points = [
                (c["n"], 1e3 * c["candidates"][name]["gpu"])
                for c in shown
                if "gpu" in c["candidates"].get(name, {})
            ]
            if points:
                color = {**COLORS, **MORE_COLORS}[name]
                label = "ms_kernels" if name == "ours" else LABELS[name]
                axes.plot(*zip(*points, strict=True), "o-", color=color, label=label)
        in_graph = [
            (c["n"], 1e3 * c["candidates"]["ours"]["graph"])
            for c in shown
            if "graph" in c["candidates"].get("ours", {})
        ]
        if in_graph:
            label = "ms_kernels in a CUDA graph"
            axes.plot(*zip(*in_graph, strict=True), "o--", color=COLORS["ours"], label=label)
        floor = [(c["n"], 1e3 * c["floor"]["t3"]) for c in shown]
        if floor:
            axes.plot(*zip(*floor, strict=True), ":", color="#999999", label="3 t1, all products")
        axes.set_title(f"{dtype}, mid")
        _log_axes(axes, [c["n"] for c in shown])
        axes.set_xlabel("batch size N (D = 512)")
    panels[0].set_ylabel("training step on the GPU (ms)")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False)
    save(figure, path, list(cases))
