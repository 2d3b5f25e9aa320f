"""A reduced loss planned once for all tensors of its kinds, of which only addresses differ.

A small batch is computed in the time that checks, plans and a dozen calls between Python and C++
take.
"""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import Side
from ms_kernels.backends.native_call import (
    NativeCall,
    Output,
    check_storage,
    extent_of,
    lies_as_read,
)

NOTHING = Side(None, None, None)  # type: ignore[arg-type]


class Input(NamedTuple):
    """What a plan knows of a tensor."""

    name: str
    is_copied: bool  # its elements do not lie as the kernels read them
    extent: int  # elements from its first to behind its last


class Plan:
    """Outputs: the loss, a second one that the kernels of the backend need, dx and dr."""

    def __init__(
        self,
        call: NativeCall,
        workspace_bytes: int,
        outputs: tuple[Output | None, Output | None, Output | None, Output | None],
        run: Callable[..., None],
    ) -> None:
        """run: takes addresses of inputs, of outputs and of the workspace."""
        sides = call.rows, NOTHING if call.columns is None else call.columns
        names = [f"{side}, {kind}" for side in ("rows", "columns") for kind in Side._fields]
        self.inputs = [
            None if t is None else Input(name, not lies_as_read(t), extent_of(t))
            for name, t in zip(names, (*sides[0], *sides[1]), strict=True)
        ]
        self.outputs = outputs
        self.workspace_bytes = workspace_bytes
        self.device = call.device
        self.run = run

    def __call__(self, anchors: Side, candidates: Side | None) -> list[Tensor | None]:
        """The outputs, of sides of the kinds that were planned."""
        device = self.device
        read, inputs = [], []
        for known, t in zip(self.inputs, (*anchors, *(candidates or NOTHING)), strict=True):
            if known is None or t is None:
                inputs.append(0)
                continue
            wanted = (t.storage_offset() + known.extent) * t.itemsize
            if t.untyped_storage().nbytes() < wanted:
                check_storage(known.name, t)
            if known.is_copied:
                t = t.contiguous()
                read.append(t)  # alive until the call is over
            inputs.append(t.data_ptr())
        made = [
            None if o is None else torch.empty(o.shape, dtype=o.dtype, device=device)
            for o in self.outputs
        ]
        workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=device)
        outputs = [0 if t is None else t.data_ptr() for t in made]
        self.run(inputs, outputs, workspace.data_ptr())
        return made
