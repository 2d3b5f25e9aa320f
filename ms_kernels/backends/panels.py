"""Streaming backend in plain PyTorch, for any device: O(panel * M) memory.

A panel is a block of rows against all columns. Whole rows are present, so mining and weighting
take one sweep. Half inputs are computed in float32.
"""

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows
from torch.nn.functional import softplus

from ms_kernels.reference import RowStatistics, masked_log_sum_exp
from ms_kernels.spec import MultiSimilaritySpec

PANEL_BYTES = 16 << 20  # one panel of similarities


class Side(NamedTuple):
    """One side of the pairs: embeddings (N, D), int64 labels (N,), ids (N,) or None."""

    embeddings: Tensor
    labels: Tensor
    ids: Tensor | None


class Term(NamedTuple):
    """What one side adds to a pair's weight: its statistics and the gradient of its row losses."""

    stats: RowStatistics
    dloss: Tensor


class Panel(NamedTuple):
    rows: slice
    sim: Tensor  # (rows, M)
    positive: Tensor
    negative: Tensor


def row_statistics(
    anchors: Side, candidates: Side | None, spec: MultiSimilaritySpec
) -> RowStatistics:
    """Statistics of each anchor; candidates None means the anchors themselves."""
    anchors, candidates = _both_sides(anchors, candidates)
    x, r = _computed(anchors, spec), _computed(candidates, spec)
    parts = [_panel_statistics(panel, spec) for panel in _panels(anchors, candidates, x, r, spec)]
    if not parts:
        none, zero = x.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=x.device)
        return RowStatistics(none, none, none, none, zero, zero)
    return RowStatistics(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def embedding_gradient(
    rows: Side,
    columns: Side | None,
    spec: MultiSimilaritySpec,
    row_term: Term | None,
    column_term: Term | None,
) -> Tensor:
    """Gradient (N, D) with respect to the rows' embeddings, through their normalisation.

    Row i gets the sum over j of (g(S_ij; row i) d_i + g(S_ij; column j) d_j) column_j.
    """
    rows, columns = _both_sides(rows, columns)
    x, r = _computed(rows, spec), _computed(columns, spec)
    dx = torch.zeros_like(x)
    for panel in _panels(rows, columns, x, r, spec):
        weight = torch.zeros_like(panel.sim)
        if row_term is not None:
            stats = RowStatistics(*(s[panel.rows, None] for s in row_term.stats))
            weight += _pair_weight(panel, stats, spec) * row_term.dloss[panel.rows, None]
        if column_term is not None:
            stats = RowStatistics(*(s[None, :] for s in column_term.stats))
            weight += _pair_weight(panel, stats, spec) * column_term.dloss[None, :]
        dx[panel.rows] = weight @ r
    if spec.normalize:
        norm = rows.embeddings.to(dx.dtype).norm(dim=1, keepdim=True).clamp(min=1e-12)
        dx = (dx - (dx * x).sum(1, keepdim=True) * x) / norm
    return dx


def _both_sides(rows: Side, columns: Side | None) -> tuple[Side, Side]:
    if columns is not None:
        return rows, columns
    if rows.ids is None:
        rows = rows._replace(ids=torch.arange(len(rows.labels), device=rows.labels.device))
    return rows, rows


def _computed(side: Side, spec: MultiSimilaritySpec) -> Tensor:
    x = side.embeddings
    x = x if x.dtype == torch.float64 else x.float()
    return unit_rows(x, dim=1) if spec.normalize else x


def _panels(
    rows: Side, columns: Side, x: Tensor, r: Tensor, spec: MultiSimilaritySpec
) -> Iterator[Panel]:
    height = max(1, PANEL_BYTES // max(1, len(r) * r.element_size()))
    for start in range(0, len(x), height):
        block = slice(start, start + height)
        sim = x[block] @ r.T
        positive = rows.labels[block, None] == columns.labels[None, :]
        negative = ~positive
        if rows.ids is not None and columns.ids is not None:
            other = rows.ids[block, None] != columns.ids[None, :]
            positive &= other
            negative &= other
        if spec.max_positive_similarity is not None:
            positive &= sim < spec.max_positive_similarity
        yield Panel(block, sim, positive, negative)


def _panel_statistics(panel: Panel, spec: MultiSimilaritySpec) -> RowStatistics:
    sim = panel.sim
    empty = sim.new_full((len(sim), 1), math.inf)  # amin and amax need at least one entry
    least = torch.cat([sim.masked_fill(~panel.positive, math.inf), empty], 1).amin(1)
    most = torch.cat([sim.masked_fill(~panel.negative, -math.inf), -empty], 1).amax(1)
    positive, negative = _kept(panel, least[:, None], most[:, None], spec)
    poison = torch.where(sim.isfinite().all(1), 0.0, math.nan).to(sim.dtype)
    return RowStatistics(
        least + poison,
        most + poison,
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
    """dl/dS of one side, its statistics shaped to broadcast over the panel; NaN stays NaN."""
    least, most = stats.hardest_positive, stats.hardest_negative
    positive, negative = _kept(panel, least, most, spec)
    pull = torch.exp(-spec.alpha * (panel.sim - spec.base) - softplus(stats.pos_lse))
    push = torch.exp(spec.beta * (panel.sim - spec.base) - softplus(stats.neg_lse))
    weight = torch.where(negative, push, torch.where(positive, -pull, 0.0))
    return torch.where(stats.pos_lse.isnan(), stats.pos_lse, weight)
