"""Where the tensors of a taped step lie: by address while it is taken down, by place when played.

Tensors that no launch needs at the same time share their place, as they do in the allocator.
"""

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from torch import Tensor

# As the allocator's; kernels are compiled for multiples of 16.
ALIGNMENT = 256
NOWHERE = (-1, 0)  # of a tensor without elements


class Span(NamedTuple):
    """Bytes from an address on, and which tensor of a step they are, from that offset on."""

    begin: int
    size: int
    source: int
    offset: int


class Spans:
    """Of inputs that overlap, each is known by its own beginning."""

    def __init__(self, spans: Iterable[Span]) -> None:
        self.spans = sorted(spans)
        self.exact: dict[int, tuple[int, int]] = {}
        for begin, _, source, offset in self.spans:
            self.exact.setdefault(begin, (source, offset))

    def find(self, address: int) -> tuple[int, int] | None:
        """Source and offset of an address; None if nobody knows it."""
        if address == 0:
            return NOWHERE
        if address in self.exact:
            return self.exact[address]
        at = bisect_right(self.spans, (address, 1 << 62, 0, 0)) - 1
        if at < 0:
            return None
        begin, size, source, offset = self.spans[at]
        return (source, offset + address - begin) if address < begin + size else None


def span_of(tensor: Tensor, source: int, offset: int = 0) -> Span:
    return Span(tensor.data_ptr(), tensor.nbytes, source, offset)


class Life(NamedTuple):
    """The first and the last launch that needs a tensor."""

    first: int
    last: int

    def meets(self, other: "Life") -> bool:
        return self.first <= other.last and other.first <= self.last


def lives_of(made: Sequence[Tensor], launches: Sequence[Sequence[object]]) -> dict[int, Life]:
    """Of the tensors that launches, given by their arguments, are handed; by their number."""
    known = Spans(span_of(t, i) for i, t in enumerate(made) if t.numel())
    found: dict[int, Life] = {}
    for place, arguments in enumerate(launches):
        for value in arguments:
            at = known.find(value.data_ptr()) if isinstance(value, Tensor) else None
            if at is not None and at != NOWHERE:
                found[at[0]] = Life(found.get(at[0], Life(place, place)).first, place)
    return found


def placed(sizes: dict[int, int], lives: dict[int, Life]) -> tuple[dict[int, int], int]:
    """Offsets of tensors of those sizes, and the bytes that hold them all: each lies as low as
    those allow that live when it does."""
    offsets: dict[int, int] = {}
    total = 0
    for number in sorted(sizes, key=lambda n: (lives[n].first, -sizes[n], n)):
        size = -(-sizes[number] // ALIGNMENT) * ALIGNMENT
        taken = sorted(
            (offsets[n], offsets[n] + -(-sizes[n] // ALIGNMENT) * ALIGNMENT)
            for n in offsets
            if lives[n].meets(lives[number])
        )
        lowest = 0
        for begin, end in taken:
            if begin - lowest >= size:
                break
            lowest = max(lowest, end)
        offsets[number] = lowest
        total = max(total, lowest + size)
    return offsets, total
