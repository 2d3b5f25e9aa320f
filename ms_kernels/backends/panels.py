"""Streaming backend in plain PyTorch, for any device: O(panel * M) memory.

Whole rows of similarities are present, so mining and weighting take one sweep.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ms_kernels.backends.interface import Side, Term
from ms_kernels.backends.sides import (
    Panel,
    Sides,
    computed,
    full_precision,
    through_normalisation,
)
from ms_kernels.backends.sweep import sweep
from ms_kernels.reference import RowStatistics, hardest, masked_log_sum_exp, row_loss
from ms_kernels.rules.spec import MultiSimilaritySpec, PairSpec, Spec


def missing() -> str | None:
    return None


def row_statistics(
    anchors: Side, candidates: Side | None, spec: MultiSimilaritySpec
) -> RowStatistics:
    """Statistics of each anchor."""
    sides = Sides(anchors, candidates, spec)
    with full_precision(sides.x):
        parts = [_panel_statistics(panel, spec) for panel in sides.panels()]
        return _joined(parts, sides.x)


def embedding_gradient(
    rows: Side,
    columns: Side | None,
    spec: MultiSimilaritySpec,
    row_term: Term | None,
    column_term: Term | None,
) -> Tensor:
    """Gradient (N, D) with respect to the rows' embeddings, through their normalisation."""
    x = computed(rows.embeddings, spec.normalize)
    dx = torch.zeros_like(x)
    with full_precision(x):
        if columns is None and row_term is not None and row_term is column_term:
            _add_gradient(Sides(rows, None, spec), row_term, spec, dx, dx)
        else:
            if row_term is not None:
                _add_gradient(Sides(rows, columns, spec), row_term, spec, dx, None)
            if column_term is not None:
                anchors = rows if columns is None else columns
                sides = Sides(anchors, None if columns is None else rows, spec)
                _add_gradient(sides, column_term, spec, None, dx)
    return through_normalisation(dx, x, rows.embeddings, spec)


def _add_gradient(
    anchors: Sides,
    term: Term,
    spec: MultiSimilaritySpec,
    into_rows: Tensor | None,
    into_columns: Tensor | None,
) -> None:
    """What the losses of the anchors, the rows, give to either side.

    The panels are those of the statistics: where similarities are great, a product in another
    order is off by whole exponents, and a pair of weight 1 would weigh half of it.
    """
    for panel in anchors.panels():
        stats = RowStatistics(*(s[panel.rows, None] for s in term.stats))
        weight = _pair_weight(panel, stats, spec) * term.dloss[panel.rows, None]
        if into_rows is not None:
            into_rows[panel.rows] += weight @ anchors.r
        if into_columns is not None:
            into_columns += weight.T @ anchors.x[panel.rows]


def loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: Spec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Row losses, kept pairs and the gradients of the losses' sum, in one sweep of panels."""
    if isinstance(spec, PairSpec):
        rule, mining = spec.weighting.row_loss, spec.mining
        return sweep(rule, mining, anchors, candidates, spec, need_dx, need_dr, dloss)
    sides = Sides(anchors, candidates, spec)
    x, r = sides.x, sides.r
    dx = torch.zeros_like(x) if need_dx else None
    dr = torch.zeros_like(r) if need_dr and candidates is not None else None
    into_columns = dx if candidates is None else dr
    parts = []
    with full_precision(x):
        for panel in sides.panels():
            stats = _panel_statistics(panel, spec)
            parts.append(stats)
            if dx is None and dr is None:
                continue
            weight = _pair_weight(panel, RowStatistics(*(s[:, None] for s in stats)), spec)
            if dx is not None:
                dx[panel.rows] += weight @ r
            if into_columns is not None:
                into_columns += weight.T @ x[panel.rows]
    stats = _joined(parts, x)
    if dx is not None:
        dx = through_normalisation(dx, x, anchors.embeddings, spec)
    if dr is not None and candidates is not None:
        dr = through_normalisation(dr, r, candidates.embeddings, spec)
    return row_loss(stats, spec.alpha, spec.beta), stats.pos_kept + stats.neg_kept, dx, dr


def _joined(parts: list[RowStatistics], x: Tensor) -> RowStatistics:
    if not parts:
        none, zero = x.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=x.device)
        return RowStatistics(none, none, none, none, zero, zero)
    return RowStatistics(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _panel_statistics(panel: Panel, spec: MultiSimilaritySpec) -> RowStatistics:
    sim = panel.sim
    least, most = hardest(panel.sim, panel.positive, panel.negative)
    positive, negative = _kept(panel, least, most, spec)
    poison = torch.where(sim.isfinite().all(1), 0.0, math.nan).to(sim.dtype)
    return RowStatistics(
        least[:, 0] + poison,
        most[:, 0] + poison,
        masked_log_sum_exp(-spec.alpha * (sim - spec.base), positive) + poison,
        masked_log_sum_exp(spec.beta * (sim - spec.base), negative) + poison,
        positive.sum(1),
        negative.sum(1),
    )


def _kept(
    panel: Panel, least: Tensor, most: Tensor, spec: MultiSimilaritySpec
) -> tuple[Tensor, Tensor]:
    if spec.epsilon is None:
        return panel.positive, panel.negative
    positive = panel.positive & (panel.sim < most + spec.epsilon)
    return positive, panel.negative & (panel.sim > least - spec.epsilon)


def _pair_weight(panel: Panel, stats: RowStatistics, spec: MultiSimilaritySpec) -> Tensor:
    """dl/dS of one side, its statistics shaped to broadcast over the panel; NaN stays NaN.

    A kept pair weighs at most 1. More is rounding of the log-sum: a great beta would make infinity
    of it.
    """
    least, most = stats.hardest_positive, stats.hardest_negative
    positive, negative = _kept(panel, least, most, spec)
    pull = -spec.alpha * (panel.sim - spec.base) - softplus(stats.pos_lse, threshold=40)
    push = spec.beta * (panel.sim - spec.base) - softplus(stats.neg_lse, threshold=40)
    pull, push = pull.clamp_(max=0).exp_(), push.clamp_(max=0).exp_()
    weight = torch.where(negative, push, torch.where(positive, -pull, 0.0))
    return torch.where(stats.pos_lse.isnan(), stats.pos_lse, weight)
