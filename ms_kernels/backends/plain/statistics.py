"""Statistics of the rows of a panel, and what its pairs weigh."""

import math

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ms_kernels.backends.interface import Known
from ms_kernels.backends.plain.sides import Panel
from ms_kernels.backends.plain.sweep import autograd
from ms_kernels.reference import RowStatistics, hardest
from ms_kernels.rules.mining import NoMining, greatest_negatives
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import FAR, RowSums
from ms_kernels.rules.weighting import MultiSimilarity


def statistics_of(panel: Panel, spec: PairSpec, known: Known | None = None) -> RowStatistics:
    """known: of the rows of all panels, if these are not all of their candidates."""
    sim = panel.sim
    if known is None:
        least, most = spec.mining.hardest(sim, panel.positive, panel.negative)
        neg_sum = None
    else:
        least, most = (one[panel.rows, None] for one in known[:2])
        neg_sum = None if known.neg_sum is None else known.neg_sum[panel.rows]
    positive, negative = _kept(panel, least, most, spec)
    finite = sim.isfinite().all(1)
    poison = torch.where(finite, 0.0, math.nan).to(sim.dtype)
    pos_sum, neg_sum, moment = spec.weighting.row_sums(sim, positive, negative, neg_sum)
    return RowStatistics(
        least[:, 0] + poison,
        most[:, 0] + poison,
        pos_sum + poison,
        neg_sum + poison,
        positive.sum(1) * finite,
        negative.sum(1) * finite,
        poison if moment is None else moment + poison,
    )


def hardest_of(panel: Panel, spec: PairSpec) -> tuple[Tensor, Tensor]:
    """(rows,) least similarity to a positive, and greatest to negatives, as many as mining asks."""
    least, _ = hardest(panel.sim, panel.positive, panel.negative)
    many = spec.mining.hardest_negatives
    return least[:, 0], greatest_negatives(panel.sim, panel.negative, many)


def weight_of(panel: Panel, stats: RowStatistics, spec: PairSpec, dloss: Tensor | None) -> Tensor:
    """dl/dS of a panel of pairs, times dloss; NaN in rows whose statistics are.

    stats: of all pairs of the rows, of which the panel may have some.
    """
    if spec.is_multi_similarity:
        weight = _multi_similarity_weight(panel, stats, spec)
        return weight if dloss is None else weight * dloss[:, None]
    ones = torch.ones_like(stats.neg_sum)
    return _rule_weight(panel, stats, spec, ones if dloss is None else dloss)


def _rule_weight(panel: Panel, stats: RowStatistics, spec: PairSpec, dloss: Tensor) -> Tensor:
    weighting = spec.weighting
    least, most = stats.hardest_positive[:, None], stats.hardest_negative[:, None]
    if spec.mining.keeps_ties:
        # A product of other rows need not find the hardest pair at the same bits: so near are ties.
        slack = 2.0**-46 if panel.sim.dtype == torch.float64 else 2.0**-19
        least = least + slack * least.abs().clamp(1, 1e30)
        most = most - slack * most.abs().clamp(1, 1e30)
    positive, negative = _kept(panel, least, most, spec)
    counts = stats.pos_kept, stats.neg_kept
    with autograd():
        totals = [
            total.detach().to(panel.sim.dtype).requires_grad_()
            for total in (stats.pos_sum, stats.neg_sum, stats.pos_moment)
        ]
        loss = weighting.loss_of(RowSums(totals[0], totals[1], *counts, totals[2]))
        slopes = torch.autograd.grad(
            loss, totals, torch.ones_like(loss), allow_unused=True, materialize_grads=True
        )
        by_positive, by_negative, by_moment = slopes
        if weighting.pos_follows_neg:
            by_negative = by_negative + by_positive * totals[2].detach()
        # An empty sum, whose logarithm is infinite, has no slope that means anything.
        by_positive, by_negative, by_moment = (
            _times(slope, dloss, count)
            for slope, count in (
                (by_positive, stats.pos_kept),
                (by_negative, stats.neg_kept),
                (by_moment, stats.pos_kept),
            )
        )
        sim = panel.sim.detach().requires_grad_()
        parts = weighting.row_sums(sim, positive, negative, stats.neg_sum)
        sums = [parts.positive, parts.negative]
        incoming = [
            slope * _share(part.detach(), total.detach(), is_log)
            for slope, part, total, is_log in zip(
                (by_positive, by_negative), sums, totals, weighting.log_sums, strict=False
            )
        ]
        if parts.moment is not None and parts.moment.requires_grad:
            sums.append(parts.moment)
            incoming.append(by_moment)
        learns = [k for k, part in enumerate(sums) if part.requires_grad]
        (weight,) = torch.autograd.grad(
            [sums[k] for k in learns], sim, [incoming[k] for k in learns], materialize_grads=True
        )
    return weight.masked_fill(stats.neg_sum.isnan()[:, None], math.nan)


def _times(slope: Tensor, dloss: Tensor, count: Tensor) -> Tensor:
    """What weighs nothing does not become NaN by its incoming gradient."""
    slope = torch.where(count > 0, slope, 0)
    return torch.where(slope == 0, 0, slope * dloss.to(slope.dtype))


def _share(part: Tensor, total: Tensor, is_log: bool) -> Tensor:
    """Derivative of a whole sum by that of some of its pairs."""
    if not is_log:
        return torch.ones_like(part)
    return torch.where(part == -math.inf, 0, (part - total).clamp(max=0).exp())


def _kept(
    panel: Panel, hardest_positive: Tensor, hardest_negative: Tensor, spec: PairSpec
) -> tuple[Tensor, Tensor]:
    if isinstance(spec.mining, NoMining):
        return panel.positive, panel.negative
    within = spec.mining.within(panel.sim, hardest_positive, hardest_negative)
    return panel.positive & within[0], panel.negative & within[1]


def _multi_similarity_weight(panel: Panel, stats: RowStatistics, spec: PairSpec) -> Tensor:
    """By formulas, in half the time that it takes by autograd.

    A kept pair weighs at most 1. More is rounding of the log-sum: a great beta would make infinity
    of it.
    """
    rule = spec.weighting
    assert isinstance(rule, MultiSimilarity)
    least, most, pos_lse, neg_lse = (s[:, None] for s in stats[:4])
    positive, negative = _kept(panel, least, most, spec)
    pull = -rule.alpha * (panel.sim - rule.base) - softplus(pos_lse, threshold=FAR)
    push = rule.beta * (panel.sim - rule.base) - softplus(neg_lse, threshold=FAR)
    pull, push = pull.clamp_(max=0).exp_(), push.clamp_(max=0).exp_()
    weight = torch.where(negative, push, torch.where(positive, -pull, 0.0))
    return torch.where(pos_lse.isnan(), pos_lse, weight)
