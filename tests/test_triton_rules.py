"""Every rule in Triton by its statistics, and what the kernels are told of a rule.

Statistics and the gradient from them go from one call to another, so these tests ask the backend's
functions themselves and compare with dense float64.
"""

import inspect
import math

import pytest
import torch

import ms_kernels

triton = pytest.importorskip("triton")
if "triton" not in ms_kernels.backends.dispatch.built():
    pytest.skip(ms_kernels.backends()["triton"].note, allow_module_level=True)

import triton.language as tl  # noqa: E402

from ms_kernels.backends import triton as backend  # noqa: E402
from ms_kernels.backends.interface import Side, Term  # noqa: E402
from ms_kernels.backends.triton import (  # noqa: E402
    coefficients,
    forms,
    launch_ranked,
    problem,
    rule_table,
)
from ms_kernels.backends.triton.mining_rules import negative_above, positive_below  # noqa: E402
from ms_kernels.backends.triton.tiles import interpreted  # noqa: E402
from ms_kernels.backends.triton.weighting_rules import finish  # noqa: E402
from ms_kernels.reference import labelled_similarities  # noqa: E402
from ms_kernels.rules import mining as mine  # noqa: E402
from ms_kernels.rules import weighting as weigh  # noqa: E402
from ms_kernels.rules.spec import MININGS as ALL_MININGS  # noqa: E402
from ms_kernels.rules.spec import NATIVE_WEIGHTINGS, WEIGHTINGS, PairSpec  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"
OF_RULE = {weigh.Circle: {"gamma": 32.0}, weigh.NTXent: {"temperature": 0.2}}
RULES = [rule(**OF_RULE.get(rule, {})) for rule in NATIVE_WEIGHTINGS]


MININGS = [
    mine.NoMining(),
    mine.MultiSimilarityMining(),
    mine.SemiHardMining(0.5),
    mine.HardestMining(),
    mine.ThresholdMining(0.6, -0.1),
    mine.TopKMining(3),
]


def name_of(rule):
    return type(rule).__name__


def dense_sums(spec, sim, positive, negative):
    """Sum of positives, of negatives and the moment, by the forms' definitions."""
    rule = rule_table.WEIGHTING_RULES[type(spec.weighting)]
    numbers = rule.numbers(spec.weighting)

    def of_form(form, u, scale, kept, offset):
        a = scale * (u + numbers.margin).clamp(min=0) if form == "circle" else scale
        z = a * (u - numbers.margin) if form == "circle" else a * u
        if form in ("exponential", "circle"):
            return z.masked_fill(~kept, -math.inf).logsumexp(1)
        if form == "sigmoid":
            return torch.where(kept, torch.nn.functional.softplus(z - offset, threshold=40), 0).sum(
                1
            )
        assert form == "hinge"
        return torch.where(kept, z.clamp(min=0), 0).sum(1)

    if rule.negative == "ranked":
        zero = sim.new_zeros(len(sim))
        over = sim[:, None, :] - sim[:, :, None] + spec.weighting.margin
        triplets = positive[:, :, None] & negative[:, None, :] & (over >= 0)
        number = triplets.sum((1, 2)).to(sim.dtype)
        return zero, spec.weighting.row_loss(sim, positive, negative), number
    u = sim - numbers.negative_base
    neg = of_form(rule.negative, u, numbers.negative_scale, negative, 0)
    offset = -neg[:, None] if rule.has_offset else 0
    u = rule.sign * (sim - numbers.positive_base)
    pos = of_form(rule.positive, u, numbers.positive_scale, positive, offset)
    moment = torch.zeros_like(sim)  # of a rule that asks for none
    if rule.moment and rule.positive == "exponential":
        moment = rule.sign * sim
    elif rule.moment:
        moment = torch.sigmoid(numbers.positive_scale * u - offset)
    return pos, neg, torch.where(positive, moment, 0).sum(1)


def dense(spec, leaf, y, refs):
    sim, positive, negative = labelled_similarities(
        leaf, y, *refs, ids=None, ref_ids=None, max_positive_similarity=None, normalize=True
    )
    least, most = spec.mining.hardest(sim.detach(), positive, negative)
    positive, negative = spec.mining.keep(sim.detach(), positive, negative)
    pos, neg, moment = dense_sums(spec, sim.detach(), positive, negative)
    stats = (least[:, 0], most[:, 0], pos, neg, positive.sum(1), negative.sum(1), moment)
    return stats, spec.weighting.row_loss(sim, positive, negative)


def sides(n, m, seed=0):
    """Few classes, and one of a single sample."""
    new = {"generator": torch.Generator().manual_seed(seed), "dtype": torch.float64}
    found = []
    for count in (n,) if m is None else (n, m):
        y = torch.arange(count) * 7 % 5
        y[0] = 9
        found += [torch.randn(count, 6, **new), y]
    return [side.to(DEVICE) for side in found]


# Every weighting with some mining rule and every mining rule with one weighting, in self mode and
# with refs by turns.
CASES = [(rule, MININGS[k % len(MININGS)], None if k % 2 else 33) for k, rule in enumerate(RULES)]
CASES += [(weigh.NTXent(0.2), rule, 33 if k % 2 else None) for k, rule in enumerate(MININGS)]


def id_of(value):
    return name_of(value) if isinstance(value, weigh.Weighting | mine.Mining) else str(value)


@pytest.mark.parametrize(("weighting", "mining", "m"), CASES, ids=id_of)
def test_statistics_and_the_gradient_from_them(weighting, mining, m, n=20):
    spec = PairSpec(weighting, mining)
    x, y, *refs = sides(n, m)
    leaf, *leaves = (v.clone().requires_grad_() for v in (x, *refs[:1]))
    wanted, loss = dense(spec, leaf, y, (*leaves, *refs[1:]) if refs else (None, None))
    anchors = Side(x, y, None)
    candidates = Side(*refs, None) if refs else None
    found = backend.row_statistics(anchors, candidates, spec)
    for got, want in zip(found, wanted, strict=True):
        torch.testing.assert_close(got, want.to(got.dtype), rtol=1e-9, atol=1e-11)
    dloss = torch.linspace(-1, 2, n, dtype=torch.float64, device=DEVICE)
    want = torch.autograd.grad(loss, (leaf, *leaves), dloss)
    term = Term(found, dloss)
    both = term if m is None else None
    got = [backend.embedding_gradient(anchors, candidates, spec, term, both)]
    if candidates is not None:
        got.append(backend.embedding_gradient(candidates, anchors, spec, None, term))
    torch.testing.assert_close(tuple(got), want, rtol=1e-8, atol=1e-10)


def test_triplets_in_rounds_from_statistics(monkeypatch):
    """Classes of more candidates than an anchor lists at once."""
    monkeypatch.setattr(launch_ranked, "LIST_BYTES", 0)
    monkeypatch.setattr(launch_ranked, "LEAST_RANKS", 8)
    mining = mine.MultiSimilarityMining()
    test_statistics_and_the_gradient_from_them(weigh.Triplet(0.3), mining, 33)


def test_terms_of_both_sides_that_are_not_the_same():
    """Each side's anchors have statistics of their own: all pairs count twice."""
    for weighting in (weigh.NTXent(0.2), weigh.Triplet()):
        spec = PairSpec(weighting, mine.MultiSimilarityMining())
        x, y, r, z = sides(20, 33)
        rows, columns = Side(x, y, None), Side(r, z, None)
        terms = []
        for own, others in ((rows, columns), (columns, rows)):
            found = backend.row_statistics(own, others, spec)
            terms.append(Term(found, torch.ones_like(found.neg_sum)))
        both = backend.embedding_gradient(rows, columns, spec, *terms)
        apart = [
            backend.embedding_gradient(rows, columns, spec, terms[0], None),
            backend.embedding_gradient(rows, columns, spec, None, terms[1]),
        ]
        torch.testing.assert_close(both, apart[0] + apart[1], rtol=1e-9, atol=1e-11)


def test_statistics_may_lie_anywhere():
    """Between others, of which some are no numbers."""
    spec = PairSpec(weigh.NTXent(0.2), mine.MultiSimilarityMining())
    x, y, r, z = sides(20, 33)
    rows, columns = Side(x, y, None), Side(r, z, None)
    found = backend.row_statistics(rows, columns, spec)
    dloss = torch.ones_like(found.neg_sum)
    apart = found._replace(
        neg_sum=torch.stack([found.neg_sum, torch.full_like(dloss, math.nan)], 1)[:, 0]
    )
    for sides_of, terms in (((rows, columns), (0, None)), ((columns, rows), (None, 0))):
        want, got = (
            backend.embedding_gradient(
                *sides_of, spec, *(None if t is None else Term(stats, dloss) for t in terms)
            )
            for stats in (found, apart)
        )
        assert torch.equal(got, want) and got.isfinite().all()


def test_a_row_that_is_not_finite_has_statistics_that_are_no_numbers():
    x, y = sides(20, None)
    x[3, 1] = math.inf
    for weighting in (weigh.Contrastive(), weigh.NTXent(), weigh.Triplet()):
        found = backend.row_statistics(Side(x, y, None), None, PairSpec(weighting, mine.NoMining()))
        assert all(found[k].isnan().all() for k in (0, 1, 2, 3, 6))
        assert not found[4].any() and not found[5].any()


def test_every_rule_has_a_row():
    assert set(rule_table.WEIGHTING_RULES) == set(WEIGHTINGS)
    assert set(rule_table.MINING_RULES) == set(ALL_MININGS)


@triton.jit
def read_all(pointer, out):
    tl.store(out, coefficients.positive_scale(pointer))
    tl.store(out + 1, coefficients.positive_base(pointer))
    tl.store(out + 2, coefficients.negative_scale(pointer))
    tl.store(out + 3, coefficients.negative_base(pointer))
    tl.store(out + 4, coefficients.margin(pointer))
    tl.store(out + 5, coefficients.max_positive_similarity(pointer))
    tl.store(out + 6, coefficients.mining_slack(pointer))
    tl.store(out + 7, coefficients.mining_positive_below(pointer))
    tl.store(out + 8, coefficients.mining_negative_above(pointer))
    tl.store(out + 9, coefficients.least_rounded(pointer))


def test_coefficients_are_read_as_they_were_written():
    """To every bit of float64, and in one order."""
    values = rule_table.Coefficients(*(k + 1 / 3 for k in range(10)))
    written = problem._coefficients_on(torch.device(DEVICE), torch.float64, values)
    names = [name for name in inspect.signature(coefficients.coefficients_kernel.fn).parameters]
    assert names == ["out", *rule_table.Coefficients._fields]
    out = torch.empty_like(written)
    read_all[(1,)](written, out)
    assert out.tolist() == list(values)


@triton.jit
def of_rules(pointer, out, RULE: tl.constexpr, FORM: tl.constexpr, MINING: tl.constexpr):
    at = tl.arange(0, 16)
    number = tl.load(pointer + at)
    found = finish(number, number, number, number, number, pointer, RULE)
    u = forms.negative_summand(number, number, pointer, FORM, True)
    u += forms.negative_result(number, number, pointer, FORM, True)
    common = forms.in_common(u, number, FORM, False)
    u += forms.weight_of(u, common, number, number, number, pointer, FORM, False)
    u += negative_above(number, number, pointer, MINING)
    u += positive_below(number, number, pointer, MINING)
    tl.store(out + at, found[0] + u)


@pytest.mark.parametrize(
    ("rule", "form", "mining", "named"),
    [
        ("nca", "hinge", "none", None),
        ("ncaa", "hinge", "none", "finish: unknown rule"),
        ("nca", "hing", "none", "unknown form"),
        ("nca", "ranked", "none", "unknown form"),
        ("nca", "hinge", "hard", "unknown mining rule"),
    ],
)
def test_what_is_unknown_does_not_compile(rule, form, mining, named):
    numbers = torch.linspace(0.1, 1, 16, device=DEVICE)
    arguments = (numbers, torch.empty_like(numbers), rule, form, mining)
    if named is None:
        of_rules[(1,)](*arguments)
        return
    with pytest.raises(Exception, match="assert|unknown") as error:
        of_rules[(1,)](*arguments)
    told = []
    while (cause := error.value if not told else told[-1].__cause__) is not None:
        told.append(cause)
    assert named in " ".join(map(str, told))


def test_lists_of_a_round_hold_at_least_one_candidate():
    x, y = sides(5, None)
    made = problem.Problem(Side(x, y, None), None, PairSpec(weigh.Triplet(), mine.NoMining()))
    assert 1 <= launch_ranked.most_ranks(made) <= 5
