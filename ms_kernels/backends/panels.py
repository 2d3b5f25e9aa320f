"""Streaming backend in plain PyTorch, for any device: O(panel * M) memory.

Whole rows of similarities are present, so mining and weighting take one sweep.
"""

import torch
from torch import Tensor

from ms_kernels.backends.interface import Found, Known, Side, Term
from ms_kernels.backends.listing import gradient_of_anchors
from ms_kernels.backends.plain.sides import Panel, Sides, full_precision
from ms_kernels.backends.plain.statistics import hardest_of, statistics_of, weight_of
from ms_kernels.backends.plain.sweep import by_autograd, sweep
from ms_kernels.backends.plain.weight_sums import weight_sums_of
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import WeightSums

DEVICE = None
NOTE = "streaming, plain PyTorch, any device"
MOST_SAMPLES = None
CROWD = None
READS_ANY_DTYPE = True


def missing() -> str | None:
    return None


def refuses(spec: PairSpec, dtype: torch.dtype | None) -> str | None:
    return None


def row_statistics(anchors: Side, candidates: Side | None, spec: PairSpec) -> RowStatistics:
    """Statistics of each anchor."""
    return block_statistics(anchors, candidates, spec, None)


def takes_blocks(spec: PairSpec) -> bool:
    return True


def hardest_of_block(
    anchors: Side, candidates: Side | None, spec: PairSpec
) -> tuple[Tensor, Tensor]:
    """Hardest pairs of each anchor that these candidates offer."""
    sides = Sides(anchors, candidates, spec)
    with full_precision(sides.x), torch.no_grad():
        parts = [hardest_of(panel, spec) for panel in sides.panels()]
    if not parts:
        return sides.x.new_zeros(0), sides.x.new_zeros(0, spec.mining.hardest_negatives)
    least, most = zip(*parts, strict=True)
    return torch.cat(least), torch.cat(most)


def block_statistics(
    anchors: Side, candidates: Side | None, spec: PairSpec, known: Known | None
) -> RowStatistics:
    """Statistics of each anchor, by what is known of more candidates than these."""
    sides = Sides(anchors, candidates, spec)
    with full_precision(sides.x), torch.no_grad():
        return _joined([statistics_of(panel, spec, known) for panel in sides.panels()], sides.x)


def embedding_gradient(
    rows: Side,
    columns: Side | None,
    spec: PairSpec,
    row_term: Term | None,
    column_term: Term | None,
) -> Tensor:
    """Gradient (N, D) with respect to the rows' embeddings, through their normalisation."""
    return gradient_of_anchors(_swept, rows, columns, spec, row_term, column_term)


def weight_sums(anchors: Side, candidates: Side | None, spec: PairSpec, term: Term) -> Tensor:
    """`WeightSums` (4,) of the anchors' pairs with these candidates."""
    sides = Sides(anchors, candidates, spec)
    total = sides.x.new_zeros(len(WeightSums._fields), dtype=torch.float64)
    with full_precision(sides.x), torch.no_grad():
        for panel in sides.panels():
            stats = RowStatistics(*(s[panel.rows] for s in term.stats))
            weight = weight_of(panel, stats, spec, term.dloss[panel.rows])
            total += weight_sums_of(panel, weight, spec)
    return total.to(sides.x.dtype)


def loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None = None,
) -> Found:
    """Row losses, kept pairs and the gradients of the losses' sum, in one sweep of panels."""
    if spec.is_multi_similarity and dloss is None:
        return _swept(anchors, candidates, spec, need_dx, need_dr)
    of_panel = by_autograd(spec.weighting.row_loss, spec.mining, dloss)
    return sweep(of_panel, anchors, candidates, spec, need_dx, need_dr)


def _swept(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    term: Term | None = None,
) -> Found:
    """By statistics: those of the term, or the panel's own.

    The panels are those of the statistics: where similarities are great, a product in another
    order is off by whole exponents, and a pair of weight 1 would weigh half of it.
    """

    def of_panel(panel: Panel, wanted: bool) -> tuple[Tensor, Tensor, Tensor]:
        if term is None:
            stats, dloss = statistics_of(panel, spec), None
        else:
            stats = RowStatistics(*(s[panel.rows] for s in term.stats))
            dloss = term.dloss[panel.rows]
        weight = weight_of(panel, stats, spec, dloss) if wanted else panel.sim
        return spec.loss_of(stats), stats.pos_kept + stats.neg_kept, weight

    return sweep(of_panel, anchors, candidates, spec, need_dx, need_dr, arrays=1)


def _joined(parts: list[RowStatistics], x: Tensor) -> RowStatistics:
    if not parts:
        none, zero = x.new_zeros(0), torch.zeros(0, dtype=torch.int64, device=x.device)
        return RowStatistics(none, none, none, none, zero, zero, none)
    return RowStatistics(*(torch.cat(columns) for columns in zip(*parts, strict=True)))
