"""The launches of a step, taken down once and played again.

Triton's launcher looks at every argument of every launch anew: on the host of an H200 150 us a
launch, for kernels of 5 to 10 us. Of equal sizes, dtypes and options all that differs from call to
call are addresses. So a step that is met a second time is taken down: which compiled kernels it
launches, with which numbers, and of each address in which tensor it lies. Played again, what it
allocates for itself is one tensor.
"""

import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ms_kernels.backends.triton import driver, tiles
from ms_kernels.backends.triton.played import Address, Call, Found, Launch, Tape
from ms_kernels.backends.triton.workspace import NOWHERE, Spans, lives_of, placed, span_of

Run = Callable[[], Found]
# Of tapes, and of steps that were met once.
MOST_KEPT = 512

_aten = torch.ops.aten
_ALLOCATIONS = {
    _aten.empty.memory_format,
    _aten.empty_like.default,
    _aten.empty_strided.default,
    _aten.new_empty.default,
}
_VIEWS = {_aten.detach.default, _aten.select.int, _aten.alias.default}
_VIEWS |= {_aten.view.default, _aten.view.dtype}
# What is called again, of inputs alone.
_CALLS = {_aten.sort.default, _aten.sort.stable}

_local = threading.local()
_free = threading.Lock()


def launch_kernel(kernel: Any, grid: tuple[int, ...], *arguments: Any, **constants: Any) -> None:
    """Launches a kernel of Triton; where a step is being taken down, takes it down."""
    taking: _Taking | None = getattr(_local, "taking", None)
    if taking is None:
        kernel[grid](*arguments, **constants)
    else:
        taking.launch(kernel, grid, arguments, constants)


_tapes: dict[Hashable, Tape | None] = {}
_met: set[Hashable] = set()


def forget() -> None:
    _tapes.clear()
    _met.clear()


def taped(key: Hashable, inputs: Sequence[Tensor], run: Run) -> Found:
    """What `run` finds. key: all that it depends on but the addresses of the inputs and what they
    hold; it launches kernels of Triton and does nothing else that a tape does not know."""
    place = tuple(t.data_ptr() for t in inputs)
    key = key, tuple((place.index(p), p % 16 == 0) for p in place)
    tape = _tapes.get(key)
    if tape is not None:
        return tape.play(inputs)
    if key in _tapes or key not in _met:
        _keep(_met, key)
        return run()
    # One at a time: of modes that overlap in two threads torch would take one for active for ever.
    if not _free.acquire(blocking=False):
        return run()
    found: Found | None = None
    try:
        taking = _Taking(inputs)
        found = taking.take(run)
        tape = taking.tape(found)
    except torch.OutOfMemoryError:  # all that it allocates is alive at once
        pass
    finally:
        _free.release()
    if len(_tapes) >= MOST_KEPT:
        _tapes.clear()
    _tapes[key] = tape
    return run() if found is None else found


def _keep(met: set[Hashable], key: Hashable) -> None:
    if len(met) >= MOST_KEPT:
        met.clear()
    met.add(key)


def _like(tensor: Tensor) -> Tensor:
    """Of its dtype and strides, without its memory: a tape is kept, what was taken down is not."""
    shape, strides = tensor.shape, tensor.stride()
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device="meta")


class _Launched(NamedTuple):
    kernel: Any  # compiled, or interpreted
    grid: tuple[int, ...]
    arguments: list[Any]


def _launch_of(launched: _Launched, spans: Spans) -> Launch | None:
    """None if an argument is of a tensor that nobody knows."""
    interpreted = tiles.interpreted()
    arguments, addresses, views = launched.arguments.copy(), [], []
    for place, value in enumerate(arguments):
        if not isinstance(value, Tensor) or (interpreted and not value.numel()):
            continue
        at = spans.find(value.data_ptr())
        if at is None:
            return None
        arguments[place] = 0
        if at != NOWHERE:
            addresses.append(Address(place, *at))
            if interpreted:
                views.append(_like(value))
    grid = launched.grid if interpreted else (*launched.grid, 1, 1)[:3]
    run = launched.kernel[grid]
    return Launch(run, arguments, addresses, views if interpreted else None)


class _Taking(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what a step asks PyTorch for; what it does not know cannot be played again."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.inputs = list(inputs)
        self.made: list[Tensor] = []  # kept, so that no two have the same address
        self.called: list[Tensor] = []
        self.entries: list[_Launched | Call] = []
        self.unknown: str | None = None
        self.launching = False  # what Triton itself asks for is none of the step's

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Nothing compiles what this mode sees; to say so would import the compiler."""
        return False

    def take(self, run: Run) -> Found:
        _local.taking = self
        try:
            with self:
                return run()
        finally:
            _local.taking = None

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        found = func(*args, **options)
        if self.launching:
            return found
        if func in _ALLOCATIONS:
            self.made.append(found)
        elif func in _CALLS:
            self._add_call(func, args, options, found)
        elif func not in _VIEWS:
            self.unknown = str(func)
        return found

    def _add_call(self, func: Any, args: Any, options: dict[str, Any], found: Any) -> None:
        which = [self._input(a) if isinstance(a, Tensor) else None for a in args]
        for argument, index in zip(args, which, strict=True):
            if isinstance(argument, Tensor) and index is None:
                self.unknown = f"{func} of what is no input"
        rest = [None if isinstance(a, Tensor) else a for a in args]
        self.entries.append(Call(func, which, rest, options))
        self.called += found

    def _input(self, tensor: Tensor) -> int | None:
        for index, given in enumerate(self.inputs):
            if (given.data_ptr(), given.shape, given.stride(), given.dtype) == (
                *(tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype),
            ):
                return index
        return None

    def launch(
        self,
        kernel: Any,
        grid: tuple[int, ...],
        arguments: Sequence[Any],
        constants: dict[str, Any],
    ) -> None:
        self.launching = True
        compiled = kernel[grid](*arguments, **constants)
        self.launching = False
        given = dict(zip(kernel.arg_names, arguments, strict=False)) | constants
        ordered = [given[name] for name in kernel.arg_names]
        self.entries.append(_Launched(kernel if compiled is None else compiled, grid, ordered))

    def tape(self, found: Found) -> Tape | None:
        """None where something happened that cannot be played again."""
        made = {t.data_ptr(): i for i, t in enumerate(self.made) if t.numel()}
        outputs = []
        for tensor in found:
            index = None if tensor is None else made.get(tensor.data_ptr())
            if tensor is not None and (index is None or self.made[index].shape != tensor.shape):
                return None
            outputs.append(index)
        if self.unknown is not None:
            return None
        spans, size = self._spans([i for i in outputs if i is not None])
        entries: list[list[Launch] | Call] = []
        requests = []
        for entry in self.entries:
            if isinstance(entry, Call):
                entries.append(entry)
                continue
            launch = _launch_of(entry, spans)
            if launch is None:
                return None
            if entries and isinstance(entries[-1], list):
                entries[-1].append(launch)
            else:
                entries.append([launch])
            requests.append(driver.Request(entry.kernel, entry.grid, *launch[1:3]))
        kinds = [None if i is None else (self.made[i].shape, self.made[i].dtype) for i in outputs]
        native = None if tiles.interpreted() else driver.native(requests)
        return Tape(entries, kinds, size, native)

    def _spans(self, outputs: list[int]) -> tuple[Spans, int]:
        """Where the tensors of the step lie when it is played, and how large the workspace is."""
        launches = [() if isinstance(e, Call) else e.arguments for e in self.entries]
        lives = lives_of(self.made, launches)
        sizes = {i: self.made[i].nbytes for i in lives if i not in outputs}
        offsets, size = placed(sizes, lives)
        spans = [span_of(self.made[i], 0, offset) for i, offset in offsets.items()]
        rest = [*(self.made[i] for i in outputs), *self.inputs, *self.called]
        spans += [span_of(t, number) for number, t in enumerate(rest, 1) if t.numel()]
        return Spans(spans), size
