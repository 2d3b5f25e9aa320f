"""Triplets that miners list, a panel of similarities at a time."""

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.roads import panels
from ms_kernels.settings import options


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
    found = [torch.zeros(0, 3, dtype=torch.int64, device=pairs.labels.device)]
    for panel in panels(measure, pairs):
        lines = panel.positive.nonzero()
        fitting = options.panel_bytes // max(1, panel.sim.shape[1] * panel.sim.element_size())
        for some in torch.split(lines, max(1, fitting)):
            near = panel.sim[some[:, 0], some[:, 1]]
            lead = near[:, None] - panel.sim[some[:, 0]]
            kept = (panel.negative[some[:, 0]] & is_kind(lead, margin, kind)).nonzero()
            anchors, positives = some[kept[:, 0]].unbind(1)
            found.append(torch.stack([anchors + panel.rows.start, positives, kept[:, 1]], 1))
    anchors, positives, negatives = torch.cat(found).unbind(1)
    return anchors, positives, negatives


def is_kind(lead: Tensor, margin: float, kind: str) -> Tensor:
    if kind == "easy":
        return lead > margin
    if kind == "hard":
        return (lead <= margin) & (lead <= 0)
    within = lead <= margin
    return within & (lead > 0) if kind == "semihard" else within
