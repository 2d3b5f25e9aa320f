"""Streaming backend in plain PyTorch, for any device: O(panel * M) memory.

Whole rows of similarities are present, so mining and weighting take one sweep.
"""

import torch
from torch import Tensor

from ms_kernels.backends.interface import Found, Side, Term
from ms_kernels.backends.panel_rules import statistics_of, weight_of
from ms_kernels.backends.sides import (
    Sides,
    computed,
    full_precision,
    through_normalisation,
)
from ms_kernels.backends.sweep import sweep
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec

DEVICE = None
NOTE = "streaming, plain PyTorch, any device"
MOST_SAMPLES = None
CROWD = None


def missing() -> str | None:
    return None


def refuses(spec: PairSpec, dtype: torch.dtype | None) -> str | None:
    return None


def row_statistics(anchors: Side, candidates: Side | None, spec: PairSpec) -> RowStatistics:
    """Statistics of each anchor."""
    sides = Sides(anchors, candidates, spec)
    with full_precision(sides.x), torch.no_grad():
        return _joined([statistics_of(panel, spec) for panel in sides.panels()], sides.x)


def embedding_gradient(
    rows: Side,
    columns: Side | None,
    spec: PairSpec,
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
    spec: PairSpec,
    into_rows: Tensor | None,
    into_columns: Tensor | None,
) -> None:
    """What the losses of the anchors, the rows, give to either side.

    The panels are those of the statistics: where similarities are great, a product in another
    order is off by whole exponents, and a pair of weight 1 would weigh half of it.
    """
    for panel in anchors.panels():
        stats = RowStatistics(*(s[panel.rows] for s in term.stats))
        weight = weight_of(panel, stats, spec, term.dloss[panel.rows])
        if into_rows is not None:
            into_rows[panel.rows] += weight @ anchors.r
        if into_columns is not None:
            into_columns += weight.T @ anchors.x[panel.rows]


def loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None = None,
) -> Found:
    """Row losses, kept pairs and the gradients of the losses' sum, in one sweep of panels."""
    if not spec.is_multi_similarity or dloss is not None:
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
            stats = statistics_of(panel, spec)
            parts.append(stats)
            if dx is None and dr is None:
                continue
            weight = weight_of(panel, stats, spec, None)
            if dx is not None:
                dx[panel.rows] += weight @ r
            if into_columns is not None:
                into_columns += weight.T @ x[panel.rows]
    stats = _joined(parts, x)
    if dx is not None:
        dx = through_normalisation(dx, x, anchors.embeddings, spec)
    if dr is not None and candidates is not None:
        dr = through_normalisation(dr, r, candidates.embeddings, spec)
    return spec.loss_of(stats), stats.pos_kept + stats.neg_kept, dx, dr


def _joined(parts: list[RowStatistics], x: Tensor) -> RowStatistics:
    if not parts:
        none, zero = x.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=x.device)
        return RowStatistics(none, none, none, none, zero, zero, none)
    return RowStatistics(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
