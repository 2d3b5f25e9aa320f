"""Options that learn on a GPU: values, bits, waits of the host, graphs."""

import pytest
import torch
from family import name_of
from on_device import DEVICE, REASONS, clustered, host_never_waits, replayed, tiny

from ms_kernels import pair_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

pytestmark = pytest.mark.gpu
EACH_BACKEND = pytest.mark.parametrize(
    "backend",
    [
        pytest.param(name, marks=pytest.mark.skipif(why is not None, reason=f"{name}: {why}"))
        for name, why in REASONS.items()
    ],
)
# With mining in units of similarity, so that a temperature is no factor of the rows.
RULES = [
    (weigh.MultiSimilarity, (2.0, 20.0, 0.4), mine.MultiSimilarityMining()),
    (weigh.BinomialDeviance, (2.0, 20.0, 0.4), mine.SemiHardMining(0.3)),
    (weigh.Contrastive, (0.9, 0.3), mine.NoMining()),
    (weigh.NTXent, (0.2,), mine.MultiSimilarityMining()),
    (weigh.Circle, (0.4, 20.0), mine.SemiHardMining(0.3)),
    (weigh.Triplet, (0.1,), mine.NoMining()),
]


@pytest.fixture(autouse=True)
def poison():
    """None: filling what is allocated would hide what replays write."""


def step(x, y, rules, backend, refs=None, values=None):
    weighting, numbers, mining = rules
    if values is None:
        values = [torch.tensor(v, dtype=torch.float32, device=x.device) for v in numbers]
    options = [v.detach().requires_grad_() for v in values]
    leaves = [t.detach().requires_grad_() for t in (x, refs) if t is not None]
    given = leaves[0], y, *((leaves[1], y[: len(refs)]) if refs is not None else ())
    loss = pair_loss(*given, weighting=weighting(*options), mining=mining, backend=backend)
    return loss.detach(), *torch.autograd.grad(loss, (*leaves, *options))


@EACH_BACKEND
@pytest.mark.parametrize("rules", tiny(RULES, [*RULES[:2], RULES[4]]), ids=lambda r: name_of(r[0]))
def test_values_and_gradients(rules, backend):
    """In float32 to its rounding, in float64 what the definition gives."""
    dtypes = tiny(((torch.float64, 1e-6), (torch.float32, 2e-4)), ((torch.float32, 2e-4),))
    for n, d in tiny(((200, 40), (1500, 130), (70, 300)), ((24, 20),)):
        x, y = clustered(n, d, torch.float64, n // 4)
        for refs in (None, x.flip(0)[: n // 2] + 0.1):
            exact = step(x, y, rules, "reference", refs)
            for dtype, tolerance in dtypes:
                narrow = None if refs is None else refs.to(dtype)
                found = step(x.to(dtype), y, rules, backend, narrow)
                for got, want in zip(found, exact, strict=True):
                    error = (got.double() - want.double()).norm()
                    assert error <= tolerance * want.double().norm() + tolerance * 1e-2


@EACH_BACKEND
@pytest.mark.parametrize("rules", tiny(RULES[:5], RULES[:1]), ids=lambda r: name_of(r[0]))
def test_same_bits_no_wait_and_a_graph(rules, backend):
    x, y = clustered(*tiny((700, 96), (24, 20)), torch.bfloat16)
    want = step(x, y, rules, backend)
    for _ in range(tiny(20, 1)):
        for got, same in zip(step(x, y, rules, backend), want, strict=True):
            assert torch.equal(got, same)
    with host_never_waits():
        step(x, y, rules, backend)
    # A graph reads what has been learned since.
    values = [torch.tensor(v, device=DEVICE) for v in rules[1]]
    captured, replay = replayed(lambda: step(x, y, rules, backend, values=values))
    for value in values:
        value.mul_(tiny(1.25, 1.0))  # a stand-in's replay computes nothing
    replay()
    for got, fresh in zip(captured, step(x, y, rules, backend, values=values), strict=True):
        assert torch.equal(got, fresh)
