"""Distances on a GPU: values, what mining finds, bits, waits of the host, graphs."""

import pytest
import torch
from family import name_of
from on_device import BACKENDS, DEVICE, clustered, host_never_waits, replayed, tiny

from ms_kernels import pair_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not BACKENDS, reason="there is no GPU and none is stood in for"),
]
BACKENDS = [*BACKENDS, "panels"]
DISTANCES = ("euclidean", "squared_euclidean")
# Margins in units of the distances that there are, and each kind of sum and bound.
RULES = [
    (weigh.MultiSimilarity(2.0, 5.0, -1.0), mine.MultiSimilarityMining()),
    (weigh.Circle(0.25, 4.0), mine.NoMining()),
    (weigh.Triplet(0.2), mine.NoMining()),
    (weigh.NTXent(1.0), mine.HardestMining()),
    (weigh.Contrastive(-0.1, -1.2), mine.TopKMining(3)),
]


@pytest.fixture(autouse=True)
def poison():
    """None: filling what is allocated would hide what replays write."""


def step(x, y, backend, distance, normalize, rules, refs=None):
    leaves = [t.detach().requires_grad_() for t in (x, refs) if t is not None]
    given = leaves[0], y, *((leaves[1], y[: len(refs)]) if refs is not None else ())
    how = {"distance": distance, "normalize": normalize, "backend": backend}
    loss = pair_loss(*given, weighting=rules[0], mining=rules[1], **how)
    return loss.detach(), *torch.autograd.grad(loss, leaves)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rules", tiny(RULES, RULES[:3]), ids=lambda r: name_of(r[0]))
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_values_and_gradients(distance, normalize, rules, backend):
    """In float32 to the rounding of squares, in float64 what the definition gives."""
    dtypes = tiny(((torch.float64, 1e-8), (torch.float32, 2e-4)), ((torch.float32, 2e-4),))
    for n, d in tiny(((200, 40), (1500, 130), (70, 300)), ((24, 20),)):
        x, y = clustered(n, d, torch.float64, n // 4)
        x = x if normalize else 100 + x / d**0.5
        for refs in (None, x.flip(0)[: n // 2] + 0.1):
            exact = step(x, y, "reference", distance, normalize, rules, refs)
            assert exact[1].abs().max() > 0
            for dtype, tolerance in dtypes:
                if dtype == torch.float32 and rules in RULES[3:]:
                    continue  # of two almost equally hard pairs another may be the hardest
                narrow = None if refs is None else refs.to(dtype)
                found = step(x.to(dtype), y, backend, distance, normalize, rules, narrow)
                for got, want in zip(found, exact, strict=True):
                    assert (got.double() - want).norm() <= tolerance * want.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rules", tiny(RULES, RULES[:1]), ids=lambda r: name_of(r[0]))
@pytest.mark.parametrize("distance", DISTANCES)
def test_same_bits_no_wait_and_a_graph(distance, rules, backend):
    x, y = clustered(*tiny((700, 96), (24, 20)), torch.bfloat16)
    how = backend, distance, False, rules
    want = step(x, y, *how)
    for _ in range(tiny(20, 1)):
        for got, same in zip(step(x, y, *how), want, strict=True):
            assert torch.equal(got, same)
    with host_never_waits():
        step(x, y, *how)
    place = x.clone()
    captured, replay = replayed(lambda: step(place, y, *how))
    rows = tiny(x.flip(1), x)  # a stand-in's replay computes nothing
    place.copy_(rows)
    replay()
    for got, fresh in zip(captured, step(rows, y, *how), strict=True):
        assert torch.equal(got, fresh)


@pytest.mark.parametrize("backend", BACKENDS)
def test_deterministic_algorithms_are_no_obstacle(backend):
    x, y = clustered(*tiny((300, 40), (24, 20)), torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        step(x, y, backend, "euclidean", False, RULES[0])
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mining", [mine.HardestMining(), mine.TopKMining(1)], ids=name_of)
@pytest.mark.parametrize("distance", DISTANCES)
def test_the_hardest_pair_is_found_again_in_the_gradient(distance, mining, backend):
    """Of unit rows that all but point one way, in float32, but for anchors whose two hardest pairs
    are equally hard within its rounding."""
    for d in tiny((20, 40, 62, 130, 512), (20,)):
        generator = torch.Generator(DEVICE).manual_seed(d)
        n = tiny(400, 24)
        noise = torch.randn(2, n, d, generator=generator, device=DEVICE, dtype=torch.float64)
        x, y = 1 + 0.03 * noise[0], torch.arange(n, device=DEVICE) % (n // 4)
        refs = 1 + 0.03 * noise[1, : n // 2]
        found = []
        for name, kind in ((backend, torch.float32), ("reference", torch.float64)):
            leaf = x.to(kind).requires_grad_()
            how = {"weighting": weigh.NTXent(0.05), "mining": mining, "distance": distance}
            pairs = leaf, y, refs.to(kind), y[: n // 2]
            loss = pair_loss(*pairs, reduction="sum", backend=name, **how)
            found.append(torch.autograd.grad(loss, leaf)[0].double())
        unit, others = (torch.nn.functional.normalize(t) for t in (x, refs))
        apart = torch.cdist(unit, others, compute_mode="donot_use_mm_for_euclid_dist")
        same = y[:, None] == y[: n // 2]
        near = apart.masked_fill(same, torch.inf).topk(2, largest=False).values
        far = apart.masked_fill(~same, -torch.inf).topk(2).values
        clear = (near[:, 1] - near[:, 0] > 1e-3 * near[:, 0]) & ~(far[:, 0] - far[:, 1] < 1e-5)
        assert clear.sum() > n // 2
        got, want = (dx[clear] for dx in found)
        assert (got - want).norm(dim=1).max() < 1e-2 * want.norm(dim=1).max()
