"""The family on a GPU: values, bits, waits of the host, graphs, on every backend that knows it."""

import pytest
import torch
from cases import assert_within_budget
from family import MININGS, WEIGHTINGS, dense_step, name_of
from on_device import BACKENDS, clustered, host_never_waits, replayed, tiny
from rounding import Rounding

from ms_kernels import pair_loss
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
