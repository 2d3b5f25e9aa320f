"""Every weighting with every mining rule binds, compiles and launches, and waits for nothing."""

import itertools
from dataclasses import fields

import pytest
import torch
from steps import FULL, cost_of, step

import ms_kernels
from ms_kernels.backends import triton as backend
from ms_kernels.backends.interface import Known, Side
from ms_kernels.rules import mining as mining_rules
from ms_kernels.rules.spec import DISTANCES, MININGS, NATIVE_WEIGHTINGS, PairSpec
from ms_kernels.rules.weighting import Circle, MultiSimilarity, Triplet

# (dtype, depth): rows held whole, panels.
KINDS = [(torch.bfloat16, 40)]
if FULL:
    KINDS = list(itertools.product((torch.bfloat16, torch.float32, torch.float64), (8, 40, 512)))


def made(rule):
    return rule(gamma=32.0) if rule is Circle else rule()


@pytest.mark.parametrize("mining", MININGS, ids=lambda m: m.__name__)
@pytest.mark.parametrize("weighting", NATIVE_WEIGHTINGS, ids=lambda w: w.__name__)
def test_step(stand_in, weighting, mining):
    given = {"weighting": made(weighting), "mining": mining()}
    for (dtype, depth), reduction in itertools.product(KINDS, ("mean", "none")):
        run = step(70, depth, dtype, ms_kernels.pair_loss, reduction=reduction, **given)
        cost = cost_of(stand_in, run)
        assert not cost.waits and len(cost.kernels) >= 4


@pytest.mark.parametrize("weighting", NATIVE_WEIGHTINGS, ids=lambda w: w.__name__)
@pytest.mark.parametrize("n", (0, 1, 33, 1500) if FULL else (333,))
def test_refs(stand_in, weighting, n):
    given = {"weighting": made(weighting), "mining": mining_rules.MultiSimilarityMining()}
    # Rules know nothing of ids: in the suite, test_modes.py has them for one rule.
    for m, ids in ((77, False), (77, True), (1300, False)) if FULL else ((1300, False),):
        depth = 128 if FULL else 40  # of one kernel, rows held whole
        run = step(n, depth, loss=ms_kernels.pair_loss, m=m, ids=ids, learn_refs=m > 77, **given)
        cost = cost_of(stand_in, run)
        assert not cost.waits and len(cost.kernels) >= 4


# In the suite every weighting and every mining rule, by turns.
@pytest.mark.parametrize(
    ("weighting", "mining"),
    [
        (weighting, mining)
        for i, weighting in enumerate(NATIVE_WEIGHTINGS)
        for j, mining in enumerate(MININGS)
        if FULL or (i - j) % len(MININGS) == 0
    ],
    ids=lambda rule: rule.__name__,
)
def test_statistics_take_no_launch_more(stand_in, weighting, mining):
    """The step itself writes them; of triplets a kernel adds up how many violate the margin."""

    def with_statistics(*given, **options):
        return ms_kernels.pair_loss(*given, return_statistics=True, **options)[0]

    given = {"weighting": made(weighting), "mining": mining()}
    for n, m in ((70, None), (70, 77)):
        refs = {} if m is None else {"m": m, "learn_refs": True}
        for dtype, depth in KINDS:
            how = n, depth, dtype
            plain = cost_of(stand_in, step(*how, ms_kernels.pair_loss, **refs, **given))
            run = step(*how, with_statistics, **refs, **given)
            counted = cost_of(stand_in, run)
            more = ["count"] if weighting is Triplet else []
            assert sorted(counted.kernels) == sorted([*plain.kernels, *more])
            assert not counted.waits and not cost_of(stand_in, run).compiled


@pytest.mark.parametrize("mining", MININGS, ids=lambda m: m.__name__)
def test_blocks(stand_in, mining):
    """Of candidates, by what is known of all of them."""
    rules = MultiSimilarity(), made(Circle)
    for weighting, (dtype, depth) in itertools.product(rules, KINDS):
        spec = PairSpec(weighting, mining())
        anchors, block = (side_of(n, depth, dtype) for n in (70, 77))
        if not backend.takes_blocks(spec):
            assert mining is mining_rules.TopKMining
            return

        def run(spec=spec, anchors=anchors, block=block):
            known = None
            if spec.mining.needs_hardest:
                least, most = backend.hardest_of_block(anchors, block, spec)
                known = Known(least, most[:, 0])
            backend.block_statistics(anchors, block, spec, known)

        cost = cost_of(stand_in, run)
        assert not cost.waits and ("known_bounds" in cost.kernels) == spec.mining.needs_hardest


def side_of(n, depth, dtype):
    return Side(torch.zeros(n, depth, dtype=dtype), torch.arange(n) % 8, torch.arange(n))


@pytest.mark.parametrize("distance", DISTANCES[1:])
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
def test_distances(stand_in, distance, normalize):
    """Longer rows are made and taken back by launches of Triton, which wait for nothing."""
    given = {"distance": distance, "normalize": normalize}
    some = NATIVE_WEIGHTINGS if FULL else (Circle, Triplet)
    for weighting in (made(rule) for rule in some):
        for m, reduction in itertools.product((None, 77), ("mean", "none")):
            refs = {} if m is None else {"m": m, "learn_refs": True}
            rules = {"weighting": weighting, "reduction": reduction, **given}
            run = step(70, 40, torch.float32, ms_kernels.pair_loss, **refs, **rules)
            first, second = cost_of(stand_in, run), cost_of(stand_in, run)
            assert not first.waits and len(first.kernels) >= 4
            assert first.kernels == second.kernels and not second.compiled


@pytest.mark.parametrize("weighting", NATIVE_WEIGHTINGS, ids=lambda w: w.__name__)
def test_options_that_learn(stand_in, weighting):
    """Their values stay on the device, and what is learned compiles no kernel anew."""
    rule = weighting()
    for (m, reduction), mining in itertools.product(
        ((None, "mean"), (77, "none")), (mining_rules.MultiSimilarityMining(),)
    ):
        options = [torch.tensor(getattr(rule, f.name), requires_grad=True) for f in fields(rule)]
        refs = {} if m is None else {"m": m, "learn_refs": True}
        rules = {"weighting": weighting(*options), "mining": mining, "reduction": reduction}
        run = step(70, 40, torch.float32, ms_kernels.pair_loss, **refs, **rules)
        first = cost_of(stand_in, run)
        assert not first.waits and "weights" in first.kernels
        assert all(option.grad is not None for option in options)
        assert not cost_of(stand_in, run).compiled


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
def test_a_distance_takes_few_launches_more(stand_in, normalize):
    costs = []
    for distance in DISTANCES:
        given = {"distance": distance, "normalize": normalize, "weighting": made(MultiSimilarity)}
        run = step(333, 128, torch.float32, ms_kernels.pair_loss, **given)
        cost_of(stand_in, run)
        costs.append(cost_of(stand_in, run))
    products, *distances = costs
    more = ("middle", "longer", "shorter", *(("longer",) if normalize else ()))
    for cost in distances:
        assert cost.torch_ops == products.torch_ops
        assert sorted(cost.kernels) == sorted([*products.kernels, *more])
