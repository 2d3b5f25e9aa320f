"""A memory's ring against a list of rows."""

import math

import pytest
import torch

import ms_kernels
from ms_kernels.api.ring import Ring


@pytest.mark.parametrize("chance", [0.0, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("size", [1, 2, 7, 20])
def test_rows_that_enter_and_others(size, chance):
    """None of the others leaves a trace, wherever the ring is; restored, nothing does."""
    generator = torch.Generator().manual_seed(size)
    ring, past = Ring(size, 2, torch.float64), []
    for n in torch.randint(10, (40,), generator=generator).tolist():
        rows = torch.randn(n, 2, generator=generator, dtype=torch.float64)
        labels, ids = torch.randint(9, (2, n), generator=generator)
        enters = torch.rand(n, generator=generator) < chance
        rows[~enters] = math.nan
        before = [buffer.clone() for buffer in ring.buffers()]
        ring.restore(ring.write(rows, labels, ids, enters))
        assert all(map(torch.equal, ring.buffers(), before))
        ring.write(rows, labels, ids, enters)
        past += zip(rows[enters], labels[enters], ids[enters], strict=True)
        past = past[-size:]
        assert int(ring.filled) == len(past)
        slots = (ring.position - len(past) + torch.arange(len(past))) % size
        for slot, (row, label, own) in zip(slots, past, strict=True):
            assert torch.equal(ring.rows[slot], row)
            assert ring.labels[slot] == label and ring.ids[slot] == own
        assert (ring.ids == ms_kernels.IGNORED).sum() == size - len(past)
