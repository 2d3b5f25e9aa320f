"""What a run has found: a table to read, and a picture of nearest neighbours to look at."""

import json
import os
from pathlib import Path
from typing import Any

import torch

from examples.retrieval.evaluate import Embedded
from examples.retrieval.layouts import Benchmark
from ms_kernels.retrieval import RetrievalScores, nearest

QUERIES, NEIGHBOURS = 6, 8
FOUND, WRONG = "#0072B2", "#D55E00"  # told apart by colour-blind readers, and by a cross


def percentages(scores: RetrievalScores) -> dict[str, float]:
    found = {f"Recall@{k}": 100 * value for k, value in scores.recall.items()}
    return {**found, "MAP@R": 100 * scores.map_at_r, "R-precision": 100 * scores.r_precision}


def table(scores: RetrievalScores) -> str:
    found = percentages(scores)
    lone = scores.without_relevant
    left_out = f"; {lone} more have nobody to find, and are left out" if lone else ""
    return "\n".join(
        [
            "| " + " | ".join(found) + " |",
            "|" + "--:|" * len(found),
            "| " + " | ".join(f"{value:.1f}" for value in found.values()) + " |",
            "",
            f"Percent of {scores.queries} queries{left_out}.",
        ]
    )


def write(path: Path, content: str) -> None:
    """Whole or not at all."""
    beside = path.with_name(path.name + ".part")
    beside.write_text(content)
    os.replace(beside, path)


def write_results(path: Path, found: dict[str, Any]) -> None:
    write(path, json.dumps(found, indent=1) + "\n")


def draw_neighbours(embedded: Embedded, benchmark: Benchmark, path: Path) -> str:
    """A picture of some queries, evenly spaced, whatever they find; says what it did."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return f"no {path.name}: matplotlib is not installed (pip install matplotlib)"
    images, queries = benchmark.gallery or benchmark.query, len(embedded.labels)
    chosen = torch.linspace(0, queries - 1, min(QUERIES, queries)).round().long()
    chosen = chosen.to(embedded.query.device)
    gallery, gallery_labels, ids, ref_ids = _candidates(embedded, chosen)
    k = min(NEIGHBOURS, len(gallery) - 1) or 1
    found = nearest(embedded.query[chosen], gallery, k=k, ids=ids, ref_ids=ref_ids)
    figure = Figure(figsize=(0.9 * (k + 1), 0.9 * len(chosen) + 0.3))
    ax = figure.add_axes((0.01, 0.01, 0.98, 0.98 - 0.3 / figure.get_figheight()))
    for row, query in enumerate(chosen.tolist()):
        _show(ax, row, 0, benchmark.query.read(query), None)
        for place, index in enumerate(found.indices[row].tolist(), 1):
            if index >= 0:
                right = bool(gallery_labels[index] == embedded.labels[query])
                _show(ax, row, place, images.read(index), right)
    for place in range(k + 1):
        ax.text(place + 0.5, -0.08, str(place or "query"), ha="center", fontsize=8)
    ax.set(xlim=(-0.05, k + 1.05), ylim=(len(chosen) + 0.05, -0.05), aspect="equal")
    ax.set_axis_off()
    beside = path.with_name(path.name + ".part")
    figure.savefig(beside, dpi=100, format="png")
    os.replace(beside, path)
    return f"nearest neighbours of {len(chosen)} queries: {path}"


def _candidates(embedded: Embedded, chosen: Any) -> tuple[Any, Any, Any, Any]:
    """Gallery rows, their labels, and ids that leave out what the evaluation leaves out."""
    if embedded.gallery is not None:
        return embedded.gallery, embedded.gallery_labels, None, None
    ids = embedded.groups
    if ids is None:
        ids = torch.arange(len(embedded.labels), device=chosen.device)
    return embedded.query, embedded.labels, ids[chosen], ids


def _show(ax: Any, row: int, column: int, image: Any, right: bool | None) -> None:
    """In a square of size 1; framed if it was found, with a cross if wrongly."""
    from matplotlib.patches import Rectangle

    least, most = 0.06, 0.94
    box = column + least, column + most, row + most, row + least
    ax.imshow(image, cmap="gray", vmin=0, vmax=255, extent=box)
    if right is None:
        return
    color, corner = FOUND if right else WRONG, (column + least, row + least)
    side = most - least
    ax.add_patch(Rectangle(corner, side, side, fill=False, edgecolor=color, linewidth=2.5))
    if not right:
        for ends in ((0.1, 0.24), (0.24, 0.1)):
            ax.plot([column + 0.76, column + 0.9], [row + y for y in ends], color=color)
