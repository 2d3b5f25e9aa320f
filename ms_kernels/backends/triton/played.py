"""What a tape holds, and how it is played: by the driver in one call, by Triton's launcher where
that does more, or by its interpreter."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.triton import driver, tiles

Found = tuple[Tensor | None, ...]


class Address(NamedTuple):
    """Of an argument: which tensor of those of a step, and how many bytes from its beginning."""

    place: int
    source: int
    offset: int


class Launch(NamedTuple):
    run: Callable[..., None]  # by Triton's launcher
    arguments: list[Any]  # with something in the place of addresses
    addresses: list[Address]
    views: list[Tensor] | None  # of an interpreted kernel, which takes tensors: what they are like


class Call(NamedTuple):
    """Of PyTorch; its results are tensors of the step too."""

    function: Callable[..., Any]
    inputs: list[int | None]  # which of the step's inputs stands for each argument
    arguments: list[Any]
    options: dict[str, Any]


class Tape(NamedTuple):
    """Tensors are numbered: the workspace, outputs, inputs, results of calls."""

    entries: list[list[Launch] | Call]
    outputs: list[tuple[torch.Size, torch.dtype] | None]
    workspace_bytes: int
    native: Any  # all launches in their order, for the driver; None: by Triton's launcher

    def play(self, inputs: Sequence[Tensor]) -> Found:
        device = inputs[0].device
        found = [
            None if o is None else torch.empty(o[0], dtype=o[1], device=device)
            for o in self.outputs
        ]
        workspace = torch.empty(self.workspace_bytes, dtype=torch.uint8, device=device)
        tensors = [workspace, *(t for t in found if t is not None), *inputs]
        bases = [t.data_ptr() for t in tensors]
        stream = None if tiles.interpreted() else _stream(device)
        native = None if self.native is None or driver.is_watched() else self.native
        begun = 0
        for entry in self.entries:
            if isinstance(entry, Call):
                results = _call_again(entry, inputs)
                tensors += results  # alive until all is launched
                bases += [t.data_ptr() for t in results]
                continue
            end = begun + len(entry)
            # What the driver refuses Triton's launcher is asked for: it makes a context where a
            # thread has none, and knows what the driver's error says.
            done = 0 if native is None else native.play(begun, end, bases, stream)[0]
            for launch in entry[done:]:
                _launch_again(launch, tensors, bases, stream)
            begun = end
        return tuple(found)


def _stream(device: torch.device) -> int:
    from triton.runtime import driver as triton_driver

    found: int = triton_driver.active.get_current_stream(device.index or 0)
    return found


def _launch_again(
    launch: Launch, tensors: Sequence[Tensor], bases: Sequence[int], stream: int | None
) -> None:
    """By Triton's launcher, or its interpreter, which takes tensors."""
    arguments = launch.arguments.copy()
    if launch.views is not None:
        for (place, source, offset), like in zip(launch.addresses, launch.views, strict=True):
            arguments[place] = _within(tensors[source], offset, like)
        launch.run(*arguments)
        return
    for place, source, offset in launch.addresses:
        arguments[place] = bases[source] + offset
    launch.run(*arguments, stream=stream)


def _within(source: Tensor, offset: int, like: Tensor) -> Tensor:
    """What lies `offset` bytes from the beginning of a tensor, of another's dtype and strides."""
    begin = source.storage_offset() * source.itemsize + offset
    found = torch.empty(0, dtype=like.dtype, device=source.device)
    at = begin // like.itemsize
    return found.set_(source.untyped_storage(), at, like.shape, like.stride())


def _call_again(entry: Call, inputs: Sequence[Tensor]) -> list[Tensor]:
    pairs = zip(entry.inputs, entry.arguments, strict=True)
    given = [value if index is None else inputs[index] for index, value in pairs]
    return list(entry.function(*given, **entry.options))
