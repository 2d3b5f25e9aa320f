"""The demo's picture: loss curves, recall, a map of the unseen classes, time and memory by N."""

from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from sklearn.manifold import TSNE
from torch import Tensor

# Okabe and Ito's palette: distinct for colour-blind readers too.
FUSED, DENSE, BEFORE = "#0072B2", "#E69F00", "#999999"
CLASSES = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v")


def draw(fused: Any, dense: Any, labels: Tensor, costs: list[Any], output: str) -> None:
    figure = plt.figure(figsize=(14, 8.6), layout="constrained")
    parts: Any = figure.subfigures(2, 1, height_ratios=(1.1, 1))
    above, below = parts
    left, middle, right = above.subplots(1, 3, width_ratios=(1.1, 1, 1.2))
    _loss_curves(left, fused, dense)
    _recall_bars(middle, fused)
    _map(right, fused.embeddings, labels)
    time, memory = below.subplots(1, 2)
    draw_costs(time, memory, costs)
    figure.savefig(output, dpi=110)
    plt.close(figure)


def draw_costs(time: Axes, memory: Axes, costs: list[Any]) -> None:
    _against_n(time, costs, [cost.milliseconds for cost in costs], "time of a step (ms)")
    time.set_title("The loss alone: how long a step takes")
    measured = [cost for cost in costs if cost.peak_bytes]
    mebibytes = [tuple(peak / 2**20 for peak in cost.peak_bytes) for cost in measured]
    _against_n(memory, measured, mebibytes, "peak memory (MiB)", least=1)
    memory.set_title("How much memory it takes beside the embeddings")


def _loss_curves(axes: Axes, fused: Any, dense: Any) -> None:
    axes.plot(dense.losses, color=DENSE, linewidth=5, alpha=0.6, label="dense reference")
    axes.plot(fused.losses, color=FUSED, linewidth=1.2, label="fused")
    axes.set(xlabel="step", ylabel="Multi-Similarity loss", ylim=(0, None))
    axes.set_title("Training on digits 0-4: one curve over the other")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)


def _recall_bars(axes: Axes, fused: Any) -> None:
    ranks = ["1", "2", "4", "8"]
    for offset, values, color, name in (
        (-0.2, fused.before, BEFORE, "untrained"),
        (0.2, fused.after, FUSED, "trained"),
    ):
        places = [k + offset for k in range(4)]
        bars = axes.bar(places, values, width=0.38, color=color, label=name)
        axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    axes.set_xticks(range(4), ranks)
    axes.set(xlabel="K", ylabel="Recall@K (%)", ylim=(0, 118))
    axes.set_yticks(range(0, 101, 20))
    axes.set_title("Retrieval of digits 5-9, never seen in training")
    axes.legend(frameon=False, loc="upper left", ncols=2)
    axes.spines[["top", "right"]].set_visible(False)


def _against_n(
    axes: Axes, costs: list[Any], pairs: list[tuple[float, ...]], label: str, least: float = 0
) -> None:
    """What is below the least is not measured, and so not drawn."""
    for k, (color, marker, name) in enumerate(((DENSE, "s", "dense"), (FUSED, "o", "fused"))):
        points = [
            (cost.n, pair[1 - k])
            for cost, pair in zip(costs, pairs, strict=True)
            if pair[1 - k] >= least
        ]
        if not points:
            continue
        n, values = zip(*points, strict=True)
        axes.loglog(n, values, color=color, marker=marker, label=name)
        for x, y in points:
            shift, side = ((0, 7), "bottom") if name == "dense" else ((0, -7), "top")
            shown = f"{y:,.0f}" if y >= 100 else f"{y:.2g}"
            beside: Any = {"textcoords": "offset points", "ha": "center", "va": side, "fontsize": 9}
            axes.annotate(shown, (x, y), shift, **beside)
    sizes = [cost.n for cost in costs]
    axes.set_xticks(sizes, [f"{n:,}" for n in sizes])
    axes.minorticks_off()
    axes.margins(x=0.08, y=0.18)
    below = f"; what takes less than {least:g} MiB is not seen" if least else ""
    axes.set(xlabel=f"rows of the batch, N{below}", ylabel=label)
    if axes.lines:
        axes.legend(frameon=False)
    else:
        why = "Linux tells it, this system does not"
        axes.text(0.5, 0.5, why, ha="center", transform=axes.transAxes)
    axes.spines[["top", "right"]].set_visible(False)


def _map(axes: Axes, embeddings: Tensor, labels: Tensor) -> None:
    flat = TSNE(metric="cosine", init="pca", random_state=0).fit_transform(embeddings.numpy())
    for k, (color, marker) in enumerate(zip(CLASSES, MARKERS, strict=True)):
        chosen = (labels == k + 5).numpy()
        x, y = flat[chosen].T
        axes.scatter(x, y, s=14, color=color, marker=marker, linewidths=0, label=str(k + 5))
    axes.legend(title="digit", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set(xticks=[], yticks=[], xlabel="t-SNE of the trained embeddings")
    axes.set_title("Digits 5-9 as the network places them")
