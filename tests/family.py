"""The one list of weighting rules and of mining rules, with options that show; a step of any."""

import math

import torch
from cases import assert_within_budget, incoming_gradient
from rounding import Rounding

from ms_kernels import pair_loss, reference
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import NATIVE

MININGS = [
    mine.NoMining(),
    mine.MultiSimilarityMining(0.1),
    mine.HardestMining(),
    mine.SemiHardMining(0.5),
    mine.ThresholdMining(0.6, -0.1),
    mine.TopKMining(3),
]
WEIGHTINGS = [
    weigh.MultiSimilarity(),
    weigh.Contrastive(0.9, 0.1),
    weigh.BinomialDeviance(),
    weigh.BinLifted(),
    weigh.LiftedStructure(),
    weigh.Triplet(0.2),
    weigh.NPair(),
    weigh.NTXent(0.2),
    weigh.SupCon(0.2),
    weigh.NCA(),
    weigh.DecoupledContrastive(0.2),
    weigh.Circle(),
    weigh.SigLIP(5.0, -1.0),
]


def name_of(rule):
    return type(rule).__name__


KERNELS = [rule for rule in WEIGHTINGS if type(rule) in NATIVE]


# As kernels are told: (weighting rule, its options, mining rule, its options), of which one has a
# code that nobody knows.
UNKNOWN = [(99.0, 0.2, 0.0, 0.0, 0.0, 0.0, 0.0), (5.0, 0.2, 0.0, 0.0, 99.0, 0.0, 0.0)]


def case_of(value):
    return str(value) if isinstance(value, tuple) else name_of(value)


def kept(rule, pos, neg):
    """The kept ones of two lists of similarities, one by one from the definitions."""
    least, most = min(pos, default=math.inf), max(neg, default=-math.inf)
    match rule:
        case mine.NoMining():
            return pos, neg
        case mine.MultiSimilarityMining(e):
            return [s for s in pos if s < most + e], [s for s in neg if s > least - e]
        case mine.HardestMining():
            return [s for s in pos if s == least], [s for s in neg if s == most]
        case mine.TopKMining(k):
            return pos, [s for s in neg if s >= sorted(neg)[-min(k, len(neg))]]
        case mine.SemiHardMining(m):
            return pos, [s for s in neg if least - m < s < least]
        case mine.ThresholdMining(p, n):
            return [s for s in pos if s < p], [s for s in neg if s > n]


def softplus(z):
    return math.log1p(math.exp(-abs(z))) + max(z, 0)


def lse(zs):
    top = max(zs)
    return top + math.log(sum(math.exp(z - top) for z in zs))


def expected(rule, pos, neg):
    """The loss of one anchor, from the equation."""
    match rule:
        case weigh.MultiSimilarity(a, b, base):
            p = math.log(1 + sum(math.exp(-a * (s - base)) for s in pos)) / a
            return p + math.log(1 + sum(math.exp(b * (s - base)) for s in neg)) / b
        case weigh.BinLifted(a, b, base):
            p = math.log(1 + sum(math.exp(-a * (s - base)) for s in pos))
            return p + math.log(1 + sum(math.exp(b * (s - base)) for s in neg))
        case weigh.Contrastive(p, n):
            return sum(max(0, p - s) for s in pos) + sum(max(0, s - n) for s in neg)
        case weigh.BinomialDeviance(a, b, base):
            p = sum(math.log(1 + math.exp(a * (base - s))) for s in pos) / max(1, len(pos))
            n = sum(math.log(1 + math.exp(b * (s - base))) for s in neg) / max(1, len(neg))
            return p + n
        case weigh.LiftedStructure(m):
            return max(0, lse([m - s for s in pos]) + lse(neg)) if pos and neg else 0
        case weigh.Triplet(m):
            return sum(max(0, n - p + m) for p in pos for n in neg)
        case weigh.SigLIP(t, b):
            pulled = sum(softplus(-(t * s + b)) for s in pos)
            return pulled + sum(softplus(t * s + b) for s in neg)
        case weigh.NTXent(t):  # NPair too
            each = [math.log(1 + sum(math.exp((n - p) / t) for n in neg)) for p in pos]
            return sum(each) / max(1, len(pos))
        case weigh.SupCon(t):
            if not pos:
                return 0
            whole = lse([s / t for s in pos + neg])
            return sum(whole - s / t for s in pos) / len(pos)
        case weigh.DecoupledContrastive(t):
            if not (pos and neg):
                return 0
            return lse([s / t for s in neg]) - sum(pos) / t / len(pos)
        case weigh.NCA(t):
            share = [sum(math.exp(s / t) for s in part) for part in (pos, neg)]
            return -math.log(share[0] / sum(share)) if pos else 0
        case weigh.Circle(m, gamma):
            if not (pos and neg):
                return 0
            p = lse([-gamma * max(0, 1 + m - s) * (s - (1 - m)) for s in pos])
            return softplus(p + lse([gamma * max(0, s + m) * (s - m) for s in neg]))


def by_formula(rule, pos, neg):
    """Derivatives of one anchor, as the docstring of its rule has them: of pos, of neg."""
    none = torch.zeros_like(pos), torch.zeros_like(neg)
    match rule:
        case weigh.MultiSimilarity(a, b, base) | weigh.BinLifted(a, b, base):
            pull, push = (-a * (pos - base)).exp(), (b * (neg - base)).exp()
            scale = (a, b) if isinstance(rule, weigh.BinLifted) else (1, 1)
            return -scale[0] * pull / (1 + pull.sum()), scale[1] * push / (1 + push.sum())
        case weigh.Contrastive(p, n):
            return -(pos < p).to(pos), (neg > n).to(neg)
        case weigh.BinomialDeviance(a, b, base):
            pull = a * torch.sigmoid(a * (base - pos)) / max(1, len(pos))
            return -pull, b * torch.sigmoid(b * (neg - base)) / max(1, len(neg))
        case weigh.SigLIP(t, b):
            return -t * torch.sigmoid(-(t * pos + b)), t * torch.sigmoid(t * neg + b)
        case weigh.SupCon(t) if len(pos):
            share = torch.cat([pos, neg]).div(t).softmax(0).split([len(pos), len(neg)])
            return -(1 / len(pos) - share[0]) / t, share[1] / t
        case weigh.NPair(t) | weigh.NTXent(t) if len(pos) and len(neg):
            up, z = (neg / t).exp(), (neg / t).exp().sum()
            beside = (pos / t).exp() + z
            return -z / beside / (t * len(pos)), up * (1 / beside).sum() / (t * len(pos))
        case weigh.DecoupledContrastive(t) if len(pos) and len(neg):
            return torch.full_like(pos, -1 / (t * len(pos))), (neg / t).softmax(0) / t
        case weigh.NCA(t) if len(pos) and len(neg):
            share = torch.cat([pos, neg]).div(t).softmax(0).split([len(pos), len(neg)])
            return -((pos / t).softmax(0) - share[0]) / t, share[1] / t
        case weigh.Circle(m, gamma) if len(pos) and len(neg):
            a_p, a_n = (1 + m - pos).clamp(min=0), (neg + m).clamp(min=0)
            p, n = -gamma * a_p * (pos - (1 - m)), gamma * a_n * (neg - m)
            factor = gamma * torch.sigmoid(p.logsumexp(0) + n.logsumexp(0))
            return -factor * a_p * p.softmax(0), factor * a_n * n.softmax(0)
        case weigh.LiftedStructure(margin) if len(pos) and len(neg):
            active = ((margin - pos).logsumexp(0) + neg.logsumexp(0) > 0).to(pos)
            return -active * (-pos).softmax(0), active * neg.softmax(0)
        case weigh.Triplet(margin):
            violated = (neg[None, :] - pos[:, None] + margin > 0).to(pos)
            return -violated.sum(1), violated.sum(0)
    return none


def few(n=14, m=None, d=4, seed=3):
    generator = torch.Generator().manual_seed(seed)
    new = {"generator": generator, "dtype": torch.float64}
    y = torch.randint(5, (n,), generator=generator)
    x = torch.randn(5, d, **new)[y] + torch.randn(n, d, **new)
    if m is None:
        return x, y
    return x, y, torch.randn(m, d, **new), torch.randint(5, (m,), generator=generator)


def gradient(call, x):
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(call(leaf), leaf)[0]


def five_lines(similarity, positive, negative):
    pull = torch.where(positive, -2 * (similarity - 0.5), -torch.inf)
    push = torch.where(negative, 50 * (similarity - 0.5), -torch.inf)
    zero = similarity.new_zeros(len(similarity), 1)
    lse = [torch.cat([zero, z], 1).logsumexp(1) for z in (pull, push)]
    return lse[0] / 2 + lse[1] / 50


def batch(n, m, d, dtype=torch.float64, seed=0):
    new = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    classes = max(2, n // 4)
    centres = 0.8 * torch.randn(classes, d, **new)
    sides = []
    for count in (n,) if m is None else (n, m):
        y = torch.randint(classes, (count,), generator=new["generator"])
        sides += [(centres[y] + torch.randn(count, d, **new)).to(dtype), y]
    return sides


def step(sides, backend, reduction="none", **rules):
    """Loss and the gradient of every side, of an incoming gradient that differs by row."""
    x, y, *refs = sides
    leaves = [side.detach().requires_grad_() for side in (x, *refs[:1])]
    loss = pair_loss(
        leaves[0], y, *leaves[1:], *refs[1:], backend=backend, reduction=reduction, **rules
    )
    incoming = incoming_gradient(len(x)).to(loss) if reduction == "none" else None
    loss.backward(incoming)
    return [loss.detach(), *(leaf.grad for leaf in leaves)]


def dense_step(x, y, weighting):
    """Plain PyTorch in the dtype of the rows; backend="reference" widens half rows first."""
    leaf = x.detach().requires_grad_()
    options = {"ids": None, "ref_ids": None, "max_positive_similarity": None, "normalize": True}
    found = reference.labelled_similarities(leaf, y, None, None, **options)
    loss = weighting.row_loss(*found).mean()
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def assert_step(sides, backend, reduction="none", **rules):
    """Loss and gradients of `step` within their budgets, and of the rows' dtype."""
    wide = [side.double() if side.is_floating_point() else side for side in sides]
    exact = step(wide, "reference", reduction, **rules)
    incoming = incoming_gradient(len(wide[0])) if reduction == "none" else torch.ones(())
    mining = rules.get("mining", mine.NoMining())
    floors = Rounding(sides, rules["weighting"], mining, backend=backend)
    floors = floors.step(reduction, incoming.to(wide[0]))
    dense = dense_step(*sides, rules["weighting"]) if sides[0].is_cuda else [None] * len(exact)
    found = step(sides, backend, reduction, **rules)
    for got, same, want, floor in zip(found, dense, exact, floors, strict=True):
        assert got.dtype == sides[0].dtype
        assert_within_budget(got, same, want, floor)
