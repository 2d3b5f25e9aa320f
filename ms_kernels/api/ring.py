"""A ring of detached rows with their labels and ids, on the device: what a memory is made of.

How many rows enter is known to the device alone, which is never waited for: every write has the
shape of its batch, and rows that do not enter write again what their slots hold.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ms_kernels.reference import IGNORED


class Slots(NamedTuple):
    """Some slots of a ring and what they hold."""

    at: Tensor
    rows: Tensor
    labels: Tensor
    ids: Tensor
    position: Tensor
    filled: Tensor


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
        there."""
        size, some = self.rows.shape[0], min(rows.shape[0], self.rows.shape[0])
        # Those that enter last, in their order; of each how many of its kind follow.
        order = enters.to(torch.uint8).argsort(stable=True)[rows.shape[0] - some :]
        enters = enters[order]
        count = enters.sum()
        later = torch.arange(some - 1, -1, -1, device=rows.device)
        at = (self.position + count - 1 - later) % size
        before = Slots(
            at,
            self.rows[at],
            self.labels[at],
            self.ids[at],
            self.position.clone(),
            self.filled.clone(),
        )
        # Whatever may fail comes before the first write.
        after = Slots(
            at,
            torch.where(enters[:, None], rows[order].to(self.rows.dtype), before.rows),
            torch.where(enters, labels[order], before.labels),
            torch.where(enters, ids[order], before.ids),
            (before.position + count) % size,
            (before.filled + count).clamp(max=size),
        )
        self.restore(after)
        return before

    def restore(self, slots: Slots) -> None:
        """What slots hold, where the next row goes, and how many there are."""
        self.rows[slots.at] = slots.rows
        self.labels[slots.at] = slots.labels
        self.ids[slots.at] = slots.ids
        self.position.copy_(slots.position)
        self.filled.copy_(slots.filled)

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
