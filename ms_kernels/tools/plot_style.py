"""Colors, lines and frames that the plots share; without pyplot, so without a display or state."""

from typing import Any

try:
    from matplotlib.axes import Axes as Axes
    from matplotlib.figure import Figure as Figure
except ImportError as error:
    raise ImportError(
        f"ms_kernels.tools.plots needs {error.name}: pip install matplotlib, or "
        "pip install '.[plots]' in the source folder"
    ) from error

# Okabe and Ito's palette without its yellow, which is faint on white: distinct for colour-blind
# readers too. Beyond seven curves the dashes tell them apart.
COLORS = ("#0072B2", "#D55E00", "#000000", "#56B4E9", "#E69F00", "#CC79A7", "#009E73")
DASHES = ("-", "--", ":")
POSITIVE, NEGATIVE = COLORS[:2]


def line(k: int) -> dict[str, Any]:
    """How the k-th curve is drawn."""
    color, dash = COLORS[k % len(COLORS)], DASHES[k // len(COLORS) % len(DASHES)]
    return {"color": color, "linestyle": dash, "linewidth": 1.8}


def own_axes(ax: Axes | None) -> Axes:
    """The Axes given, or those of a new Figure."""
    if ax is None:
        return Figure(figsize=(7, 4.5), layout="constrained").subplots()
    if not isinstance(ax, Axes):
        raise TypeError(f"ax: expected Axes of matplotlib, got {type(ax).__name__}")
    return ax


def finish(axes: Axes) -> Figure:
    """The Figure of finished Axes."""
    axes.spines[["top", "right"]].set_visible(False)
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("ax: expected Axes of a Figure, got Axes that were removed from theirs")
    return figure


def legend_below(axes: Axes, columns: int) -> None:
    place: dict[str, Any] = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
    axes.legend(frameon=False, ncols=columns, fontsize=9, columnspacing=1.2, **place)
