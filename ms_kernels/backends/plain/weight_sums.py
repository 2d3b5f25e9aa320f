"""What the weights of pairs add up to, from which the derivatives of options follow."""

import torch
from torch import Tensor

from ms_kernels.backends.plain.sides import Panel
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import Option, SummedWeighting
from ms_kernels.rules.weighting import Circle, Contrastive, LiftedStructure, SigLIP


def weight_sums_of(panel: Panel, weight: Tensor, spec: PairSpec) -> Tensor:
    """`WeightSums` (4,) in float64, of the weights dl/dS (rows, M) of a panel; one that is NaN, as
    of an anchor that is not finite, adds nothing."""
    found = []
    for kind, sign in ((panel.positive, -1), (panel.negative, 1)):
        own = torch.where(kind & ~weight.isnan(), weight, 0)
        if isinstance(spec.weighting, Circle):
            found += _of_circle(panel.sim, own, spec.weighting, sign)
        else:
            base = _bases_of(spec.weighting)[sign > 0]
            found += [own, torch.where(own == 0, 0, own * (panel.sim - base))]
    return torch.stack([one.sum(dtype=torch.float64) for one in found])


def _bases_of(rule: SummedWeighting) -> tuple[Option, Option]:
    """Of positives and of negatives."""
    if isinstance(rule, Contrastive):
        return rule.positive_margin, rule.negative_margin
    if isinstance(rule, LiftedStructure):
        return rule.margin, 0
    base: Option = -rule.bias / rule.scale if isinstance(rule, SigLIP) else getattr(rule, "base", 0)
    return base, base


def _of_circle(sim: Tensor, weight: Tensor, rule: Circle, sign: int) -> list[Tensor]:
    """With u and a as in csrc/rules/form.h; sign: that of u in S."""
    u = sim if sign > 0 else 1 - sim
    a = rule.gamma * (u + rule.m).relu()
    by_u = sign * weight
    by_exponent = torch.where(a > 0, by_u / a, 0)
    return [by_exponent, torch.where(by_u == 0, 0, by_u * (u - rule.m))]
