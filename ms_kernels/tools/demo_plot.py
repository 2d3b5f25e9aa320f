"""The demo's picture: loss curves, recall, and a map of the unseen classes."""

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


def draw(fused: Any, dense: Any, labels: Tensor, output: str) -> None:
    figure, (left, middle, right) = plt.subplots(
        1, 3, figsize=(14, 4.6), layout="constrained", width_ratios=(1.1, 1, 1.2)
    )
    _loss_curves(left, fused, dense)
    _recall_bars(middle, fused)
    _map(right, fused.embeddings, labels)
    figure.savefig(output, dpi=110)
    plt.close(figure)


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


def _map(axes: Axes, embeddings: Tensor, labels: Tensor) -> None:
    flat = TSNE(metric="cosine", init="pca", random_state=0).fit_transform(embeddings.numpy())
    for k, (color, marker) in enumerate(zip(CLASSES, MARKERS, strict=True)):
        chosen = (labels == k + 5).numpy()
        x, y = flat[chosen].T
        axes.scatter(x, y, s=14, color=color, marker=marker, linewidths=0, label=str(k + 5))
    axes.legend(title="digit", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    axes.set(xticks=[], yticks=[], xlabel="t-SNE of the trained embeddings")
    axes.set_title("Digits 5-9 as the network places them")
