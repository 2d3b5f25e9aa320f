"""Losses, statistics and gradients at once, by a backend's one sweep or by its functions."""

import math
from types import ModuleType

import torch
from torch import Tensor

from ms_kernels.backends.interface import Counted, Side, Term
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import RowSums, WeightSums
from ms_kernels.rules.weighting import Contrastive, Triplet

# Triplets are compared once more in any case. Of hinges few are active, and a scan lists them for
# the gradient, which with finished statistics would look at every pair.
ANEW = (Contrastive, Triplet)


def count_pairs(
    module: ModuleType,
    sides: tuple[Side, Side | None],
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    need_options: bool,
    dloss: Tensor | None,
    option_values: Tensor | None,
) -> Counted:
    """dloss: (N,) what each loss is worth, None for ones. option_values: of a rule that learns."""
    how = need_dx, need_dr, dloss
    if hasattr(module, "counted_loss"):
        found: Counted | None = module.counted_loss(*sides, spec, *how, option_values, need_options)
        if found is not None:
            return found
    dx: Tensor | None = None
    dr: Tensor | None = None
    if option_values is not None:
        stats = module.learned_statistics(*sides, spec, option_values)
        losses = losses_of(module, stats, spec, option_values)
        if not (need_dx or need_dr or need_options):
            return Counted(losses, stats, dx, dr, None)
        term = _term(stats, losses, dloss)
        gradients = module.learned_gradient(*sides, spec, option_values, term, need_dx, need_dr)
        return Counted(losses, stats, *gradients)
    stats = module.row_statistics(*sides, spec)
    losses = losses_of(module, stats, spec, None)
    if not (need_dx or need_dr):
        return Counted(losses, stats, dx, dr, None)
    if isinstance(spec.weighting, ANEW):
        _, _, dx, dr = module.loss_and_gradient(*sides, spec, *how)
        return Counted(losses, stats, dx, dr, None)
    anchors, candidates = sides
    term = _term(stats, losses, dloss)
    if need_dx:
        both = term if candidates is None else None
        dx = module.embedding_gradient(anchors, candidates, spec, term, both)
    if need_dr and candidates is not None:
        dr = module.embedding_gradient(candidates, anchors, spec, None, term)
    return Counted(losses, stats, dx, dr, None)


def losses_of(
    module: ModuleType, stats: RowStatistics, spec: PairSpec, option_values: Tensor | None
) -> Tensor:
    """Of each anchor, by a backend that has bits of its own for them, else by torch."""
    own = hasattr(module, "loss_of_statistics")
    if option_values is None:
        return module.loss_of_statistics(stats, spec) if own else spec.loss_of(stats)
    if own:
        spec = spec.with_numbers(option_values)
        return module.loss_of_statistics(stats, spec)  # type: ignore[no-any-return]
    return spec.loss_of(stats, spec.weighting_of(option_values))


def _term(stats: RowStatistics, losses: Tensor, dloss: Tensor | None) -> Term:
    return Term(stats, torch.ones_like(losses) if dloss is None else dloss)


def gradient_of_options(
    spec: PairSpec,
    option_values: Tensor,
    stats: RowStatistics,
    dloss: Tensor | None,
    weight_sums: Tensor,
) -> Tensor:
    """(k,) of the sum of losses times dloss. weight_sums: `WeightSums` (4,)."""
    _, _, pos, neg, pos_kept, neg_kept, moment = stats
    sums = RowSums(pos, neg, pos_kept, neg_kept, moment)
    worth = torch.ones_like(neg) if dloss is None else dloss
    rule = spec.weighting_of(option_values)
    by_option = rule.option_gradients(WeightSums(*weight_sums.unbind()), sums, worth)
    # An anchor that is not finite weighs nothing in sums.
    spoilt = neg.isnan() & (worth != 0)
    return torch.where(spoilt.any(), math.nan, torch.stack(by_option))
