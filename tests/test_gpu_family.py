"""The family on a GPU: values, bits, waits of the host, graphs, on every backend that knows it."""

import pytest
import torch
from cases import assert_within_budget
from family import MININGS, WEIGHTINGS, dense_step, name_of
from on_device import BACKENDS, clustered, host_never_waits, replayed, tiny
from rounding import Rounding

from ms_kernels import pair_loss, row_statistics
from ms_kernels.backends import dispatch
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not BACKENDS, reason="there is no GPU and none is stood in for"),
]
BACKENDS = [*BACKENDS, "panels"]
# Losses and minings of each kind of sum and bound.
RULES = [
    (weigh.NTXent(), mine.HardestMining()),
    (weigh.SupCon(), mine.NoMining()),
    (weigh.Contrastive(), mine.SemiHardMining()),
    (weigh.Triplet(), mine.NoMining()),
]


@pytest.fixture(autouse=True)
def poison():
    """None: filling what is allocated would hide what replays write."""


def batch(n, d, dtype=torch.float32):
    return clustered(n, d, dtype, n // 4)


def step(x, y, weighting, mining, backend):
    leaf = x.detach().requires_grad_()
    loss = pair_loss(leaf, y, weighting=weighting, mining=mining, backend=backend)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def known(weighting, mining, backend):
    if backend not in dispatch.takers(PairSpec(weighting, mining)):
        pytest.skip(f"{backend} does not know {name_of(weighting)}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    "dtype", tiny([torch.float32, torch.bfloat16, torch.float16], [torch.float32]), ids=str
)
@pytest.mark.parametrize("weighting", tiny(WEIGHTINGS, WEIGHTINGS[4:7]), ids=name_of)
def test_errors_stay_within_the_budget(weighting, dtype, backend):
    known(weighting, mine.NoMining(), backend)
    for shape in tiny(((200, 40), (1500, 130)), ((24, 20),)):
        x, y = batch(*shape, dtype)
        exact = step(x.double(), y, weighting, mine.NoMining(), "reference")
        same = dense_step(x, y, weighting)
        got = step(x, y, weighting, mine.NoMining(), backend)
        floors = Rounding((x, y), weighting, mine.NoMining(), backend=backend).step("mean")
        for g, s, e, floor in zip(got, same, exact, floors, strict=True):
            assert_within_budget(g, s, e, floor)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mining", tiny(MININGS, MININGS[2:4]), ids=name_of)
@pytest.mark.parametrize("depth", tiny([40, 64, 300], [20]))
def test_mining_finds_in_the_gradient_what_it_found_in_the_loss(mining, depth, backend):
    dtype, rtol, atol = tiny((torch.float64, 1e-8, 1e-10), (torch.float32, 1e-3, 1e-5))
    x, y = batch(tiny(500, 24), depth, dtype)
    want = step(x, y, weigh.NTXent(0.2), mining, "reference")
    got = step(x, y, weigh.NTXent(0.2), mining, backend)
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def counted_step(sides, weighting, mining, backend):
    """Losses of weighted anchors, their statistics and the gradients of all sides."""
    x, y, *refs = sides
    leaves = [side.detach().requires_grad_() for side in (x, *refs[:1])]
    options = {"weighting": weighting, "mining": mining, "backend": backend}
    options |= {"sample_weight": torch.linspace(-1, 2, len(x)).to(x), "return_statistics": True}
    loss, stats = pair_loss(leaves[0], y, *leaves[1:], *refs[1:], **options)
    return loss.detach(), *stats, *torch.autograd.grad(loss, leaves)


# Half rows of the first keep exponentials of the scan.
COUNTED = [(weigh.MultiSimilarity(), mine.MultiSimilarityMining()), *RULES]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("weighting", "mining"), tiny(COUNTED, COUNTED[:2]), ids=name_of)
def test_statistics_of_the_step(weighting, mining, backend):
    """As defined, in float64 where a GPU has it; of Triton to the bits of `row_statistics`."""
    known(weighting, mining, backend)
    dtype, rtol, atol = tiny((torch.float64, 1e-8, 1e-10), (torch.float32, 1e-3, 1e-5))
    for n, d in tiny(((500, 40), (1500, 300)), ((24, 20),)):
        x, y = batch(n, d, dtype)
        for refs in ((), (x.flip(0)[: n // 2] + 0.1, y.flip(0)[: n // 2])):
            sides = x, y, *refs
            loss, *found = counted_step(sides, weighting, mining, backend)
            want, *exact = counted_step(sides, weighting, mining, "reference")
            of_definition = *range(2), *range(4, 6), *range(7, len(exact))
            for k in of_definition:
                torch.testing.assert_close(found[k], exact[k], rtol=rtol, atol=atol)
            torch.testing.assert_close(loss, want, rtol=rtol, atol=atol)
            if backend == "triton":
                rules = {"weighting": weighting, "mining": mining, "backend": backend}
                assert all(map(torch.equal, found[:7], row_statistics(*sides, **rules)))
    x, y = batch(*tiny((700, 512), (24, 80)), torch.bfloat16)
    want = counted_step((x, y), weighting, mining, backend)
    for _ in range(tiny(20, 2)):  # by the launcher, taken down and played
        again = counted_step((x, y), weighting, mining, backend)
        assert all(map(torch.equal, again, want))
    with host_never_waits():
        counted_step((x, y), weighting, mining, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("weighting", [rule for rule, _ in tiny(COUNTED, COUNTED[:1])], ids=name_of)
def test_errors_of_counted_steps_stay_within_the_budget(weighting, backend):
    """Without mining, whose thresholds no rounding may carry a pair over."""
    known(weighting, mine.NoMining(), backend)
    dtypes = tiny((torch.float32, torch.bfloat16, torch.float16), (torch.bfloat16,))
    for dtype in dtypes:
        x, y = batch(*tiny((1500, 300), (24, 80)), dtype)

        def found_by(backend, x, y=y):
            leaf = x.detach().requires_grad_()
            rules = {"weighting": weighting, "mining": mine.NoMining(), "backend": backend}
            loss, _ = pair_loss(leaf, y, return_statistics=True, **rules)
            return loss.detach(), torch.autograd.grad(loss, leaf)[0]

        exact, got = found_by("reference", x.double()), found_by(backend, x)
        same = dense_step(x, y, weighting)
        floors = Rounding((x, y), weighting, mine.NoMining(), backend=backend).step("mean")
        for g, s, e, floor in zip(got, same, exact, floors, strict=True):
            assert_within_budget(g, s, e, floor)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("weighting", "mining"), tiny(RULES, RULES[1:3]), ids=name_of)
def test_same_bits_no_wait_and_a_graph(weighting, mining, backend):
    known(weighting, mining, backend)
    x, y = batch(*tiny((700, 96), (24, 20)), torch.bfloat16)
    want = step(x, y, weighting, mining, backend)
    for _ in range(tiny(20, 1)):
        for got, same in zip(step(x, y, weighting, mining, backend), want, strict=True):
            assert torch.equal(got, same)
    with host_never_waits():
        step(x, y, weighting, mining, backend)
    place = x.clone()
    captured, replay = replayed(lambda: step(place, y, weighting, mining, backend))
    rows = tiny(x.flip(1), x)  # a stand-in's replay computes nothing
    place.copy_(rows)
    replay()
    for got, fresh in zip(captured, step(rows, y, weighting, mining, backend), strict=True):
        assert torch.equal(got, fresh)
