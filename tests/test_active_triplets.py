"""How many triplets violate the margin: counted with their losses, in one sweep or in rounds."""

import every_backend
import pytest
import torch

from ms_kernels import pair_loss, row_statistics
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh


@pytest.fixture(params=every_backend.NAMES)
def backend(request, monkeypatch):
    return every_backend.served(monkeypatch, request.param)


def counted(x, y, r, z, own, margin, mining):
    """By a cube of all triplets."""
    unit = torch.nn.functional.normalize
    similarity = unit(x) @ unit(r).T
    other = ~own
    positive = (y[:, None] == z) & other
    kept = mining.keep(similarity, positive, (y[:, None] != z) & other)
    over = similarity[:, None, :] - similarity[:, :, None] + margin
    return ((over >= 0) & kept[0][:, :, None] & kept[1][:, None, :]).sum((1, 2))


@pytest.mark.parametrize("mining", [mine.NoMining(), mine.MultiSimilarityMining(0.3)], ids=repr)
def test_number_of_each_anchor(backend, mining):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(45, 6, generator=generator, dtype=torch.float64)
    y = torch.arange(45) // 3
    rules = {"weighting": weigh.Triplet(0.2), "mining": mining, "backend": backend}
    want = counted(x, y, x, y, torch.eye(45, dtype=torch.bool), 0.2, mining)
    assert want.sum() > 45
    stats = row_statistics(x, y, **rules)
    assert torch.equal(stats.pos_moment, want.double())
    loss, same = pair_loss(x, y, **rules, reduction="sum", return_statistics=True)
    assert torch.equal(same.pos_moment, want.double())
    every = pair_loss(x, y, weighting=weigh.Triplet(0.2), mining=mining, backend="reference")
    torch.testing.assert_close(loss / want.sum(), every * 45 / want.sum())


def test_a_class_of_several_rounds(backend):
    """More positives of an anchor than any backend lists at once."""
    generator = torch.Generator().manual_seed(2)
    x, r = (torch.randn(n, 4, generator=generator, dtype=torch.float64) for n in (6, 700))
    y, z = torch.arange(6) // 3, (torch.arange(700) >= 650).long()
    none = torch.zeros(6, 700, dtype=torch.bool)
    want = counted(x, y, r, z, none, 0.1, mine.NoMining())
    stats = row_statistics(x, y, r, z, weighting=weigh.Triplet(0.1), backend=backend)
    assert torch.equal(stats.pos_moment, want.double())
    assert stats.pos_kept.max() == 650
