"""S_ij and S_ji are the same bits, in every kernel and every place of a tile."""

import pytest
import torch
from cases import case_id
from on_device import DEVICE, DTYPES, REHEARSED, needs, tiny

import ms_kernels
from ms_kernels import multi_similarity_loss

pytestmark = needs("triton")


def same_bits(a, b):
    """The interpreter's products are NumPy's, whose bits depend on the place in a tile."""
    return torch.allclose(a, b, rtol=1e-5, atol=1e-6) if REHEARSED else torch.equal(a, b)


def rows(n, d, dtype, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=generator).to(DEVICE, dtype)


def mutual(sim, wanted):
    """(i, j), i < j, that are each other's greatest wanted similarity by a clear margin."""
    masked = sim.masked_fill(~wanted, -9.0)
    best, at = masked.topk(2, 1)
    clear = (best[:, 0] - best[:, 1] > 1e-3) & (best[:, 1] > -9)
    i = torch.arange(len(sim), device=sim.device)
    j = at[:, 0]
    both = clear & clear[j] & (at[j, 0] == i) & (i < j)
    return i[both], j[both]


def hardest_bits_of_mutual_pairs(n, d, dtype, seed):
    """Statistics of the same batch in four orders of its labels, so of its tiles."""
    x = rows(n, d, dtype, seed)
    y = torch.randint(max(2, n // 6), (n,), generator=torch.Generator().manual_seed(seed))
    y = y.to(DEVICE)
    unit = torch.nn.functional.normalize(x.double(), dim=1)
    sim, same = unit @ unit.T, y[:, None] == y[None, :]
    other = same.clone().fill_diagonal_(False)
    groups = {
        "hardest_negative": mutual(sim, ~same),
        "hardest_positive": mutual(-sim, other),
    }
    first = {}
    for turn in range(tiny(4, 2)):
        names = torch.randperm(n, generator=torch.Generator().manual_seed(turn)).to(DEVICE)
        stats = ms_kernels.row_statistics(x, names[y], epsilon=None, backend="triton")
        for field, (i, j) in groups.items():
            assert len(i) > n // 20, "too few pairs to judge by"
            value = getattr(stats, field)
            assert same_bits(value[i], value[j]), f"{field}: S_ij and S_ji differ"
            first.setdefault(field, value)
            assert same_bits(value[i], first[field][i]), f"{field}: differs with the tile"


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("d", tiny([96, 200, 512, 1000], [16]))
def test_mutual_hardest_pairs_have_the_same_bits(d, dtype):
    for seed in range(tiny(12, 1)):
        hardest_bits_of_mutual_pairs(tiny(500, 70) + 61 * seed, d, dtype, seed)


def no_pair_is_kept_by_any_kernel(n, d, dtype, reduction):
    """Each anchor's hardest negative is a copy of its only positive, and the slack is 0.

    S > hardest_positive is then false by equality, so loss and gradients are exactly 0 unless a
    kernel finds other bits for the same product.
    """
    x = rows(n, d, dtype, n + d)
    positive = (x + 0.3 * rows(n, d, dtype, n + d + 1)).detach()
    r = torch.cat([positive, positive]).requires_grad_()
    y = torch.randperm(n, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    z = torch.cat([y, torch.randperm(n, generator=torch.Generator().manual_seed(1)).to(DEVICE) + n])
    leaf = x.requires_grad_()
    loss = multi_similarity_loss(leaf, y, r, z, epsilon=0.0, reduction=reduction, backend="triton")
    dx, dr = torch.autograd.grad(loss.sum(), (leaf, r))
    assert all(same_bits(found, torch.zeros_like(found)) for found in (loss, dx, dr)) or REHEARSED


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize(
    "reduction", tiny(["mean", "none"], ["mean"])
)  # with and without lists of tiles
@pytest.mark.parametrize("d", tiny([128, 200, 512, 1000], [16]))
def test_gradient_sees_the_bits_that_mining_saw(d, reduction, dtype):
    no_pair_is_kept_by_any_kernel(tiny(777, 33), d, dtype, reduction)
