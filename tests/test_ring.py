"""A memory's ring against a list of rows, and how few operations its part of a step takes."""

import math

import pytest
import torch
from memories import D, memory_of
from torch.utils._python_dispatch import TorchDispatchMode

import ms_kernels
from ms_kernels.api.ring import Ring, held
from ms_kernels.reference import unit_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
# Of a step with its backward pass, beside those of the loss. Two are autograd's: the gradient of
# the loss itself, and the sum of those of its two parts. A change that needs fewer writes it down.
OPERATIONS = {torch.float32: 30, torch.bfloat16: 31}


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


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("given", DTYPES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_rows_as_they_are_held(given, dtype, normalize):
    """To the bit those of the oracle, among them rows without direction and of any length."""
    x = torch.randn(100, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x[:40] *= 10.0 ** torch.arange(-40, 0, dtype=torch.float64)[:, None]
    x[40:50] *= 10.0 ** torch.arange(10, dtype=torch.float64)[:, None]
    x[50:53] = torch.tensor([0.0, -0.0, math.nan], dtype=torch.float64)[:, None]
    x[53, 3], x[54, 39], x[55, 0] = math.inf, -math.inf, math.nan
    x[56:58] *= 1e30  # whose squares overflow in float32
    x = x.to(given)
    wide = x.double() if given == torch.float64 else x.float()
    want = (unit_rows(wide) if normalize else wide).to(dtype)
    rows, finite = held(x, dtype, normalize)
    assert rows.dtype == dtype and torch.equal(finite, want.isfinite().all(1))
    long = finite & (torch.arange(100) // 2 == 28)
    assert torch.equal(rows[finite & ~long], want[finite & ~long])
    torch.testing.assert_close(rows[long], want[long])


class Launches(TorchDispatchMode):
    """What a GPU would be asked for: views and allocations are not."""

    def __init__(self):
        super().__init__()
        self.ops = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name.removeprefix("aten::")
        if not function.is_view and name not in ("empty_like", "new_empty", "detach", "alias"):
            self.ops.append(name)
        return function(*args, **(kwargs or {}))


class Nothing(torch.autograd.Function):
    """A loss that takes no operation."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.new_empty(())

    @staticmethod
    def backward(ctx, dloss):
        (x,) = ctx.saved_tensors
        return torch.empty_like(x)


@pytest.mark.parametrize("dtype", OPERATIONS, ids=str)
def test_operations_of_a_step(dtype, monkeypatch):
    """Each is a launch on a GPU, whose memory nobody asks how many rows it holds."""
    monkeypatch.setattr(Ring, "candidates", lambda ring: (ring.rows, ring.labels, ring.ids))
    memory = memory_of(size=64, dtype=dtype)
    monkeypatch.setattr(memory.loss, "compute", lambda tensors, _: Nothing.apply(tensors[0]))
    x, y = torch.randn(16, D, dtype=dtype, requires_grad=True), torch.arange(16) // 8
    for _ in range(2):
        with Launches() as seen:
            torch.autograd.grad(memory(x, y), x)
    assert len(memory) == 32
    assert len(seen.ops) <= OPERATIONS[dtype], seen.ops
    assert "_local_scalar_dense" not in seen.ops
