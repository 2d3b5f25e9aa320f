"""What of a weighting rule matters to rounding: exponents of pairs and their sums, hinges."""

from typing import NamedTuple

import torch

from ms_kernels.rules import weighting as weigh


class Form(NamedTuple):
    """Pairs are of positives and of negatives; a tensor is (N, M), of each pair."""

    slopes: tuple[float, float]  # greatest slope of an exponent; 0 of a hinge, whose weight is 1
    base: float  # what is subtracted from similarities
    whole: tuple | None = None  # the weight of a pair that holds all of its sum
    joint: bool = False  # weights depend on the sums of both kinds
    summed: bool = False  # the row loss is a sum over pairs
    sizes: tuple | None = None  # |exponents| that are not slope times |similarity - base|


def form_of(rule, sim):
    match rule:
        case weigh.MultiSimilarity():
            return Form((rule.alpha, rule.beta), rule.base, (1.0, 1.0))
        case weigh.BinLifted():
            return Form((rule.alpha, rule.beta), rule.base, (rule.alpha, rule.beta))
        case weigh.BinomialDeviance():
            return Form((rule.alpha, rule.beta), rule.base, summed=True)
        case weigh.SigLIP():
            return Form((rule.scale, rule.scale), -rule.bias / rule.scale, summed=True)
        case weigh.LiftedStructure():
            return Form((1.0, 1.0), rule.margin, (1.0, 1.0), joint=True)
        case weigh.NTXent() | weigh.SupCon() | weigh.NCA() | weigh.DecoupledContrastive():
            a = (1 / rule.temperature,) * 2
            return Form(a, 0.0, a, joint=True, summed=not isinstance(rule, weigh.NCA))
        case weigh.Circle():  # gamma (1 + m - s) (s - 1 + m) and gamma (s + m) (s - m)
            whole = tuple(rule.gamma * v.clamp(min=0) for v in (1 + rule.m - sim, sim + rule.m))
            sizes = whole[0] * (sim - 1 + rule.m).abs(), whole[1] * (sim - rule.m).abs()
            return Form((4 * rule.gamma, 2 * rule.gamma), rule.m, whole, joint=True, sizes=sizes)
        case weigh.Contrastive():
            margin = max(rule.positive_margin, rule.negative_margin, key=abs)
            return Form((0.0, 0.0), margin, summed=True)
        case weigh.Triplet():
            return Form((0.0, 0.0), rule.margin, summed=True)
    raise TypeError(f"rule: expected one whose form is known, got {rule!r}")


def moves(rule, form, sim, kept, weight):
    """What a weight moves by, in its exponent alone, as its similarity moves by 1."""
    slope = sum(a * side for a, side in zip(form.slopes, kept, strict=True))
    if isinstance(rule, weigh.BinomialDeviance):  # a sigmoid, which saturates alone
        counts = [side.sum(1, keepdim=True).clamp(min=1) for side in kept]
        return weight * (slope - weight * torch.where(kept[0], *counts))
    if isinstance(rule, weigh.SigLIP):
        return weight * (slope - weight)
    if isinstance(rule, weigh.Circle):  # exact slopes, and that of the factor s + m
        steep = 2 * rule.gamma * torch.where(kept[0], 1 - sim, sim).abs()
        return (
            weight * steep + rule.gamma * (weight / torch.where(kept[0], *form.whole)).nan_to_num()
        )
    return slope * weight


def flips(rule, sim, kept, reach):
    """Of each pair how many hinges have their corner within reach, which is that of each pair."""
    found = torch.zeros_like(sim)
    if isinstance(rule, weigh.Contrastive):
        for side, margin in zip(kept, (rule.positive_margin, rule.negative_margin), strict=True):
            found += side & ((sim - margin).abs() <= reach)
    if isinstance(rule, weigh.Triplet):
        for row, s, far, pos, neg in zip(found, sim, reach, *kept, strict=True):
            near = (s[neg] - s[pos, None] + rule.margin).abs() <= far[neg] + far[pos, None]
            row[neg], row[pos] = near.sum(0).double(), near.sum(1).double()
    return found
