"""A ring of detached rows with their labels and ids, on the device: what a memory is made of.

How many rows enter is known to the device alone, which is never waited for: every write has the
shape of its batch, and rows that do not enter write again what a slot holds. On a GPU each
operation is a launch, which costs more than what it computes here: there are few.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.linalg import vector_norm

from ms_kernels.backends.interface import compute_dtype, reads
from ms_kernels.reference import IGNORED, NORM_FLOOR

# The squares of 2^31 numbers up to this, the most that a row has, add up to a number of float32.
NO_OVERFLOW = 2.0**40


class Slots(NamedTuple):
    """Some slots of a ring and what they hold; state: position and filled, (2,)."""

    at: Tensor
    rows: Tensor
    labels: Tensor
    ids: Tensor
    state: Tensor


class Ring(nn.Module):
    """The newest `size` rows. Slots without one have the id IGNORED: they are in no pair.

    rows (size, D), labels (size,), ids (size,); position: the slot of the next row; filled: slots
    with a row; serial: numbers given to samples without an id; calls. All are buffers.
    """

    rows: Tensor
    labels: Tensor
    ids: Tensor
    position: Tensor
    filled: Tensor
    serial: Tensor
    calls: Tensor

    def __init__(self, size: int, dim: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("rows", torch.zeros(size, dim, dtype=dtype))
        self.register_buffer("labels", torch.zeros(size, dtype=torch.int64))
        self.register_buffer("ids", torch.full((size,), IGNORED))
        for name in ("position", "filled", "serial", "calls"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def clear(self) -> None:
        for buffer in self.buffers():
            buffer.zero_()
        self.ids.fill_(IGNORED)

    def write(self, rows: Tensor, labels: Tensor, ids: Tensor, enters: Tensor) -> Slots:
        """Takes the rows that enter, a mask, the newest if they are too many; returns what was
        there. Rows have the dtype of the ring."""
        size = self.rows.shape[0]
        if rows.shape[0] > size:
            # Those that enter last, in their order.
            newest = enters.to(torch.uint8).argsort(stable=True)[-size:]
            rows, labels, ids, enters = rows[newest], labels[newest], ids[newest], enters[newest]
        places = enters.cumsum(0)  # among the rows that enter, from 1
        # Those that do not enter have the place 0: the slot before the next row's, where all write
        # what it holds. A row that enters comes round to it only if all of a ring's size enter.
        at = torch.addcmul(self.position, places, enters).sub_(1).remainder_(size)
        state = torch.stack((self.position, self.filled))
        before = Slots(at, self.rows[at], self.labels[at], self.ids[at], state)
        # Whatever may fail comes before the first write. Writes allocate nothing, but on a GPU that
        # is to use deterministic algorithms.
        rows = torch.where(enters[:, None], rows, before.rows)
        labels = torch.where(enters, labels, before.labels)
        ids = torch.where(enters, ids, before.ids)
        position, filled = state + (places[-1] if places.shape[0] else 0)
        self._put(at, rows, labels, ids)
        torch.remainder(position, size, out=self.position)
        torch.clamp(filled, max=size, out=self.filled)
        return before

    def restore(self, slots: Slots) -> None:
        """What slots held, where the next row went, and how many there were."""
        self._put(slots.at, slots.rows, slots.labels, slots.ids)
        position, filled = slots.state
        self.position.copy_(position)
        self.filled.copy_(filled)

    def _put(self, at: Tensor, rows: Tensor, labels: Tensor, ids: Tensor) -> None:
        self.rows[at] = rows
        self.labels[at] = labels
        self.ids[at] = ids

    def progress(self) -> str:
        """How far it has come; a GPU is waited for."""
        names = "position", "filled", "serial", "calls"
        return ", ".join(f"{name}={int(getattr(self, name))}" for name in names)

    def candidates(self) -> tuple[Tensor, Tensor, Tensor]:
        """Rows, labels and ids; where asking waits for nothing, of slots with a row alone."""
        if torch.compiler.is_compiling() or self.filled.device.type != "cpu":
            return self.rows, self.labels, self.ids
        filled = int(self.filled)
        return self.rows[:filled], self.labels[:filled], self.ids[:filled]

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *rest: Any, **options: Any
    ) -> None:
        """All of it or nothing."""
        _, _, missing, _, errors = rest
        before = len(missing), len(errors)
        for name, buffer in self.named_buffers():
            got = state_dict.get(prefix + name)
            if got is None:
                missing.append(prefix + name)
            elif (got.shape, got.dtype) != (buffer.shape, buffer.dtype):
                errors.append(
                    f"{prefix}{name}: expected {buffer.dtype} {tuple(buffer.shape)} as this memory "
                    f"has, got {got.dtype} {tuple(got.shape)}; make the memory as it was saved"
                )
        if before == (len(missing), len(errors)):
            super()._load_from_state_dict(state_dict, prefix, *rest, **options)


def held(x: Tensor, dtype: torch.dtype, normalize: bool) -> tuple[Tensor, Tensor]:
    """Constant rows as a ring of this dtype holds them, and which of them are finite there."""
    if not normalize:
        rows = x.to(dtype)
        return rows, vector_norm(rows, math.inf, dim=1) < math.inf
    # `unit_rows` without the detours of its derivative, to the bit up to NO_OVERFLOW. Longer rows
    # are divided by their greatest number first, all others by 1.
    greatest = vector_norm(x, math.inf, dim=1, keepdim=True, dtype=compute_dtype(x))
    rows = x / torch.threshold(greatest, NO_OVERFLOW, 1.0)
    norm = vector_norm(rows, dim=1, keepdim=True).clamp_min_(NORM_FLOOR)
    return (rows / norm).to(dtype), greatest[:, 0] < math.inf


def no_wider(rows: Tensor, x: Tensor) -> Tensor:
    """Rows of a memory as a batch may be compared with them: as they are, unless in float64."""
    return rows if reads(x.dtype, rows.dtype) else rows.to(x.dtype)
