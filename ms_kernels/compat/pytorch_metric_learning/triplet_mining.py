"""Triplets that miners list, a panel of similarities at a time."""

from collections.abc import Iterator

import torch
from torch import Tensor

from ms_kernels.backends.plain.distance import similarities
from ms_kernels.backends.plain.sides import Panel, computed
from ms_kernels.checks import Pairs
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.settings import options

# So few rows are one block of a symmetric panel: a call costs as much as their distances.
BLOCK = 32


def panels(measure: Measure, pairs: Pairs) -> Iterator[Panel]:
    """Blocks of anchors against all candidates, without a gradient."""
    x, labels, ids, r, ref_labels, ref_ids = pairs
    with torch.no_grad(), torch.autocast(x.device.type, enabled=False):
        rows = computed(x, measure.normalize)
        columns = rows if r is None else computed(r, measure.normalize)
        others = labels if ref_labels is None else ref_labels
        if r is None:
            ids = ref_ids = torch.arange(len(x), device=x.device)
        height = max(1, options.panel_bytes // max(1, len(columns) * columns.element_size()))
        for start in range(0, len(rows), height):
            block = slice(start, start + height)
            if r is None and len(rows) <= height and measure.distance is not None:
                sim = symmetric(rows, measure.distance)
            else:
                sim = similarities(rows[block], columns, measure.distance, None)
            positive = labels[block, None] == others
            negative = ~positive
            if ids is not None and ref_ids is not None:
                positive &= ids[block, None] != ref_ids
            yield Panel(block, sim, positive, negative)


def symmetric(x: Tensor, distance: str) -> Tensor:
    """(N, N): each pair of blocks is looked at once, for the square of a difference has no sign."""
    found = x.new_empty(len(x), len(x))
    height = max(BLOCK, -(-len(x) // 4))
    for start in range(0, len(x), height):
        block, rest = slice(start, start + height), slice(start, None)
        found[block, rest] = similarities(x[block], x[rest], distance, None)
        found[start + height :, block] = found[block, start + height :].T
    return found


def hardest_triplets(measure: Measure, pairs: Pairs) -> tuple[Tensor, ...]:
    """Anchors that have pairs of both kinds, the hardest of each, and their similarities."""
    none = torch.zeros(0, dtype=torch.int64, device=pairs.labels.device)
    found: list[tuple[Tensor, ...]] = [(none, none, none, none.float(), none.float())]
    for panel in panels(measure, pairs):
        near = panel.sim.masked_fill(~panel.positive, torch.inf)
        far = panel.sim.masked_fill(~panel.negative, -torch.inf)
        both = (panel.positive.any(1) & panel.negative.any(1)).nonzero()[:, 0]
        if len(both) == 0:
            continue
        (near_by, positive), (far_by, negative) = near[both].min(1), far[both].max(1)
        found.append((both + panel.rows.start, positive, negative, near_by, far_by))
    return tuple(torch.cat(parts) for parts in zip(*found, strict=True))


def triplets_within(
    measure: Measure, pairs: Pairs, margin: float, kind: str
) -> tuple[Tensor, Tensor, Tensor]:
    """(anchors, positives, negatives) by how much nearer the positive is than the negative.

    kind: "all" those up to the margin, "hard" those up to 0, "semihard" those between, "easy" those
        beyond the margin.
    """
    none = torch.zeros(0, dtype=torch.int64, device=pairs.labels.device)
    found = [(none, none, none)]
    for panel in panels(measure, pairs):
        lines, positives = panel.positive.nonzero(as_tuple=True)
        near = panel.sim[lines, positives][:, None]
        far = panel.sim.masked_fill_(~panel.negative, torch.nan)  # keeps none
        fitting = options.panel_bytes // max(1, far.shape[1] * far.element_size())
        for some in torch.split(torch.arange(len(lines), device=lines.device), max(1, fitting)):
            lead = near[some] - far[lines[some]]
            kept, negatives = is_kind(lead, margin, kind).nonzero(as_tuple=True)
            kept = some[kept]
            found.append((lines[kept] + panel.rows.start, positives[kept], negatives))
    anchors, positives, negatives = map(joined, zip(*found, strict=True))
    return anchors, positives, negatives


def is_kind(lead: Tensor, margin: float, kind: str) -> Tensor:
    if kind == "easy":
        return lead > margin
    if kind == "hard":
        return lead <= min(margin, 0)
    within = lead <= margin
    return within & (lead > 0) if kind == "semihard" else within


def joined(parts: tuple[Tensor, ...]) -> Tensor:
    """Without a copy of the only one that has any."""
    some = [part for part in parts if len(part)]
    return some[0] if len(some) == 1 else torch.cat(parts)
