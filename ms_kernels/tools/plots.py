"""Pictures of a loss: how it weighs pairs, what mining keeps, how much of it training leaves.

Each function draws into the Axes given, or into a Figure of its own, and returns the Figure:
nothing of pyplot, no state, any backend; `.savefig(path)` writes it without a display.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ms_kernels.api.inspect import row_derivative, rules_of
from ms_kernels.backends.interface import Side
from ms_kernels.backends.plain.sides import Sides
from ms_kernels.checks import check_pairs, check_rule
from ms_kernels.reference import hardest
from ms_kernels.rules.mining import (
    BoundedMining,
    HardestMining,
    Mining,
    MultiSimilarityMining,
    SemiHardMining,
    ThresholdMining,
    TopKMining,
    kept_pairs,
)
from ms_kernels.rules.spec import WEIGHTINGS, PairOptions
from ms_kernels.rules.weighting import MultiSimilarity
from ms_kernels.tools.plot_style import (
    NEGATIVE,
    POSITIVE,
    Axes,
    Figure,
    finish,
    legend_below,
    line,
    own_axes,
)

# The MS loss last, to lie dashed on top of BinLifted, whose shape it has.
RULES = (*(rule() for rule in WEIGHTINGS if rule is not MultiSimilarity), MultiSimilarity())
LOWEST = -0.2  # of the sliding pair: below it little happens
BINS = 100  # of similarities from -1 to 1


def weight_curves(
    losses: Mapping[str, object] | Iterable[object] | None = None,
    ax: Sequence[Axes] | None = None,
    *,
    positives: Sequence[float] = (0.8, 0.6),
    negatives: Sequence[float] = (0.5, 0.3),
) -> Figure:
    """Weight of a pair against its similarity: left a positive pair, right a negative one.

    The pair slides; the other pairs of its anchor stay. Drawn is -dl/dS of a positive and dl/dS of
    a negative, of each loss as a share of its greatest, since losses differ by constant factors.
    Below 0 a positive is pushed away, as SupCon does to one more similar than the others. Table 1
    of Wang et al., CVPR 2019, sorts losses by what their weights depend on: move `positives` or
    `negatives` and see which curves follow.

    losses: what `pair_weights` takes, in a sequence or by name; mining of a module acts too.
        Default: every rule that weighs an anchor's pairs, with its default constants, unmined.
    ax: two Axes. Default: a new Figure.
    positives, negatives: similarities of the other pairs.
    """
    if losses is None:
        losses = RULES
    if not isinstance(losses, Mapping):
        losses = {_name(loss): loss for loss in losses}
    rules = {name: rules_of(loss) for name, loss in losses.items()}
    if ax is None:
        panels = list(Figure(figsize=(12, 4.5), layout="constrained").subplots(1, 2))
    elif isinstance(ax, Axes) or len(ax) != 2:
        raise ValueError(f"ax: expected two Axes, for a positive and a negative pair, got {ax!r}")
    else:
        panels = list(ax)
    sliding = torch.linspace(LOWEST, 1, 601, dtype=torch.float64)[:, None]
    others = torch.tensor([*positives, *negatives], dtype=torch.float64)
    similarity = torch.cat([sliding, others.expand(len(sliding), -1)], 1)
    for axes, is_positive in zip(panels, (True, False), strict=True):
        kind = [is_positive, *(True for _ in positives), *(False for _ in negatives)]
        positive = torch.tensor(kind).expand(len(similarity), -1)
        for k, (name, rule) in enumerate(rules.items()):
            kept = kept_pairs(rule.mining, similarity, positive, ~positive)
            weight = row_derivative(rule.weighting, similarity, *kept)[:, 0]
            weight = -weight if is_positive else weight
            weight = weight / (weight.max() if weight.max() > 0 else 1)
            axes.plot(sliding[:, 0].tolist(), weight.tolist(), label=name, **line(k))
        axes.axhline(0, color="0.8", linewidth=0.8, zorder=0)
        axes.set_ylim(-0.3, 1.05)
        word, verb = ("positive", "pulled") if is_positive else ("negative", "pushed")
        axes.set_title(f"How hard a {word} pair is {verb}")
        axes.set_xlabel(f"cosine similarity S of the {word} pair")
    panels[0].set_ylabel("weight, as a share of the greatest")
    stays = [", ".join(f"{s:g}" for s in part) or "none" for part in (positives, negatives)]
    title = f"The anchor's other pairs stay:\npositives at {stays[0]},\nnegatives at {stays[1]}"
    place: dict[str, Any] = {
        "loc": "center left",
        "bbox_to_anchor": (1.01, 0.5),
        "alignment": "left",
    }
    panels[1].legend(title=title, frameon=False, handlelength=3, **place)
    return [finish(axes) for axes in panels][0]


def similarity_histogram(
    embeddings: Tensor,
    labels: Tensor,
    mining: Mining | None = None,
    ax: Axes | None = None,
) -> Figure:
    """Cosine similarities of positive and of negative pairs, and which of them mining keeps.

    Outlined: all pairs, as percent of their kind; filled: those kept. A rule whose thresholds are
    an anchor's own has a line at their median and a band from their 10th to 90th percentile.
    Memory is one panel of similarities and some numbers for each anchor.

    embeddings (N, D), finite; labels (N,).
    mining: a rule. Default: MultiSimilarityMining().
    ax: Axes. Default: a new Figure.
    """
    mining = MultiSimilarityMining() if mining is None else mining
    check_rule("mining", mining, Mining)
    pairs = check_pairs(embeddings, labels, None, None, None, None)
    if not embeddings.isfinite().all():
        raise ValueError("embeddings: expected finite numbers, got infinity or NaN")
    axes = own_axes(ax)
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        counts, least, most = _counts(Side(embeddings, pairs.labels, None), mining)
    edges = [2 * k / BINS - 1 for k in range(BINS + 1)]
    thresholds = _thresholds(mining, least, most)
    for k, (word, color) in enumerate((("positive", POSITIVE), ("negative", NEGATIVE))):
        every, kept = counts[k], counts[k + 2]
        total = max(1, int(every.sum()))
        outline, filled = ((100 * part / total).tolist() for part in (every, kept))
        label = f"{word} pairs: {int(every.sum()):,}"
        axes.stairs(outline, edges, color=color, linewidth=1.4, label=label)
        label = f"kept by mining: {100 * int(kept.sum()) / total:.3g}%"
        axes.stairs(filled, edges, color=color, fill=True, alpha=0.35, label=label)
        for name, values in thresholds[k]:
            _draw_threshold(axes, color, name, values)
    axes.set(xlabel="cosine similarity S", ylabel=f"pairs of the kind (% in each {2 / BINS:g})")
    axes.set_title(f"Which pairs {type(mining).__name__} keeps")
    legend_below(axes, 2)
    return finish(axes)


def mined_share(
    history: Sequence[float] | Mapping[str, Sequence[float]], ax: Axes | None = None
) -> Figure:
    """Percent of anchors with a mined pair, over training; from 50 steps on with a running mean.

    history: for each step a share from 0 to 1, as (stats.pos_kept + stats.neg_kept > 0) has it on
        average for the `stats` of `row_statistics`; or several such histories by name.
    ax: Axes. Default: a new Figure.
    """
    runs = history if isinstance(history, Mapping) else {"": history}
    for name, shares in runs.items():
        outside = [share for share in shares if not 0 <= share <= 1]
        if outside:
            what = f"history[{name!r}]" if name else "history"
            raise ValueError(f"{what}: expected shares from 0 to 1, got {outside[0]}")
    axes = own_axes(ax)
    window = 10 if max(map(len, runs.values()), default=0) >= 50 else 1
    for k, (name, shares) in enumerate(runs.items()):
        percent = torch.tensor([100 * share for share in shares], dtype=torch.float64)
        style = line(k)
        if window > 1:
            steps = range(1, len(shares) + 1)
            axes.plot(steps, percent.tolist(), color=style["color"], linewidth=0.8, alpha=0.35)
        mean = percent.unfold(0, window, 1).mean(1).tolist() if len(shares) >= window else []
        axes.plot(range(window, window + len(mean)), mean, label=name, **style)
    axes.set(xlabel="training step", ylabel="anchors with a mined pair (%)", ylim=(0, 104))
    mean_of = f" (bold: mean of {window} steps)" if window > 1 else ""
    axes.set_title(f"What mining leaves to learn from{mean_of}")
    if set(runs) != {""}:
        legend_below(axes, len(runs))
    return finish(axes)


def _name(loss: object) -> str:
    """Rule, or module without its Loss and with its mining."""
    rules = rules_of(loss)
    mining = type(rules.mining).__name__
    beside = "" if mining == "NoMining" else f" + {mining}"
    return type(rules.weighting).__name__ + beside


def _counts(side: Side, mining: Mining) -> tuple[Tensor, Tensor, Tensor]:
    """(4, BINS) positives, negatives, kept ones of both; what bounds pairs of either kind, (N,)
    each: the hardest positive and negative, unless the rule takes others."""
    counts = torch.zeros(4, BINS, dtype=torch.int64, device=side.labels.device)
    hardest_of = mining.hardest if isinstance(mining, BoundedMining) else hardest
    extremes = [side.embeddings.new_zeros(0)], [side.embeddings.new_zeros(0)]
    # A bin's number is int64: with the masks some five times a panel.
    for panel in Sides(side, None, PairOptions()).panels(5):
        bins = ((panel.sim + 1) * (BINS / 2)).long().clamp(0, BINS - 1)
        kept = kept_pairs(mining, panel.sim, panel.positive, panel.negative)
        for row, mask in zip(counts, (panel.positive, panel.negative, *kept), strict=True):
            row += torch.bincount(bins[mask], minlength=BINS)
        for parts, found in zip(
            extremes, hardest_of(panel.sim, panel.positive, panel.negative), strict=True
        ):
            parts.append(found[:, 0])
    return counts, torch.cat(extremes[0]), torch.cat(extremes[1])


Threshold = tuple[str, Tensor]


def _thresholds(mining: Mining, least: Tensor, most: Tensor) -> tuple[list[Threshold], ...]:
    """What a rule compares positives with, and negatives: name, and a value for each anchor."""
    match mining:
        case MultiSimilarityMining(epsilon):
            return [("kept below", most + epsilon)], [("kept above", least - epsilon)]
        case SemiHardMining(margin):
            return [], [("kept below", least), ("kept above", least - margin)]
        case HardestMining():
            return [("kept", least)], [("kept", most)]
        case TopKMining():
            return [], [("kept above", most)]
        case ThresholdMining(below, above):
            fixed = (least.new_tensor([value]) for value in (below, above))
            return [("kept below", next(fixed))], [("kept above", next(fixed))]
    return [], []


def _draw_threshold(axes: Axes, color: str, name: str, values: Tensor) -> None:
    values = values[values.isfinite()].double()
    if not len(values):
        return
    low, middle, high = torch.quantile(values, values.new_tensor([0.1, 0.5, 0.9])).tolist()
    label = f"{name} {middle:.2f}"
    if low < high:
        axes.axvspan(low, high, color=color, alpha=0.1, linewidth=0)
        label = f"{name} {middle:.2f} (10-90%: {low:.2f} to {high:.2f})"
    axes.axvline(middle, color=color, linestyle="--", linewidth=1.4, label=label)
