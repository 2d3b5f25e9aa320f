"""The family on a GPU: values, bits, waits of the host, graphs, on every backend that knows it."""

import pytest
import torch
from cases import assert_within_budget
from test_family import MININGS, WEIGHTINGS, name_of
from test_triton_family import dense_step

import ms_kernels
from ms_kernels import mining_rules as mine
from ms_kernels import pair_loss
from ms_kernels import weighting_rules as weigh
from ms_kernels.spec import PairSpec

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
]
BACKENDS = [n for n in ("cuda", "triton", "panels") if n in ms_kernels.dispatch.built()]
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
    generator = torch.Generator("cuda").manual_seed(n + d)
    y = torch.randint(n // 4, (n,), generator=generator, device="cuda")
    centres = torch.randn(n, d, generator=generator, device="cuda")
    return (centres[y] + torch.randn(n, d, generator=generator, device="cuda")).to(dtype), y


def step(x, y, weighting, mining, backend):
    leaf = x.detach().requires_grad_()
    loss = pair_loss(leaf, y, weighting=weighting, mining=mining, backend=backend)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def known(weighting, mining, backend):
    if backend not in PairSpec(weighting, mining).known_by:
        pytest.skip(f"{backend} does not know {name_of(weighting)}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_errors_stay_within_the_budget(weighting, dtype, backend):
    known(weighting, mine.NoMining(), backend)
    for shape in ((200, 40), (1500, 130)):
        x, y = batch(*shape, dtype)
        exact = step(x.double(), y, weighting, mine.NoMining(), "reference")
        same = dense_step(x, y, weighting)
        got = step(x, y, weighting, mine.NoMining(), backend)
        for g, s, e in zip(got, same, exact, strict=True):
            assert_within_budget(g, s, e)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("depth", [40, 64, 300])
def test_mining_finds_in_the_gradient_what_it_found_in_the_loss(mining, depth, backend):
    x, y = batch(500, depth, torch.float64)
    want = step(x, y, weigh.NTXent(0.2), mining, "reference")
    got = step(x, y, weigh.NTXent(0.2), mining, backend)
    torch.testing.assert_close(got, want, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(("weighting", "mining"), RULES, ids=name_of)
def test_same_bits_no_wait_and_a_graph(weighting, mining, backend):
    known(weighting, mining, backend)
    x, y = batch(700, 96, torch.bfloat16)
    want = step(x, y, weighting, mining, backend)
    for _ in range(20):
        for got, same in zip(step(x, y, weighting, mining, backend), want, strict=True):
            assert torch.equal(got, same)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, y, weighting, mining, backend)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    place = x.clone()
    with torch.cuda.stream(side):
        step(place, y, weighting, mining, backend)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step(place, y, weighting, mining, backend)
    place.copy_(x.flip(1))
    graph.replay()
    for got, fresh in zip(captured, step(x.flip(1), y, weighting, mining, backend), strict=True):
        assert torch.equal(got, fresh)
