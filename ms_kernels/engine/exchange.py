"""What the processes of a group tell one another: sizes and errors first, then rows."""

import zlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ms_kernels.reference import RowStatistics

MOST_FACTS = 6
# The older name gives a warning where the newer one exists.
_gather_into = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


class Exchange:
    """The collectives of one call. Every process must make the same calls in the same order.

    name: of the public class or function, for its errors.
    """

    def __init__(self, group: Any, device: torch.device, name: str = "DistributedLoss") -> None:
        self.group, self.device, self.name = group, device, name
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)
        self.counts: list[int] = []
        self.gradients: set[bool] = set()  # whether processes want one

    def agree(self, facts: dict[str, str], rows: int, gradient: bool, error: str | None) -> None:
        """Tells how many rows this process has and whether they want a gradient, and learns of the
        others; raises everywhere what one of them has to say, or where their facts differ. On a GPU
        it is waited for."""
        known = [float(zlib.crc32(fact.encode())) for fact in facts.values()]
        known = known or [0.0] * MOST_FACTS
        known += [0.0] * (MOST_FACTS - len(known))
        told = [float(rows), float(error is not None), float(gradient), *known]
        found = self._all(torch.tensor(told, dtype=torch.float64, device=self.device)).tolist()
        self._raise_errors(error, any(one[1] for one in found))
        self.counts = [int(one[0]) for one in found]
        self.gradients = {bool(one[2]) for one in found}
        if all(one[3:] == found[0][3:] for one in found):
            return
        everybody = self._objects(facts)
        for name, fact in everybody[0].items():
            for rank, theirs in enumerate(everybody):
                if theirs.get(name) != fact:
                    raise ValueError(
                        f"{name}: expected the same on every rank, got {fact} on rank 0 and "
                        f"{theirs.get(name)} on rank {rank}"
                    )

    def confirm(self, error: BaseException | None) -> None:
        """Raises on every process what one of them has met since; on a CPU alone, for a GPU would
        be waited for."""
        if self.device.type != "cpu":
            if error is not None:
                raise error
            return
        flags = self._all(torch.tensor([float(error is not None)]))
        try:
            self._raise_errors(None if error is None else _words(error), bool(flags.any()))
        except RuntimeError as raised:
            raise raised from error

    def _raise_errors(self, error: str | None, any_error: bool) -> None:
        if not any_error:
            return
        words = self._objects(error)
        told = "; ".join(f"rank {rank}: {word}" for rank, word in enumerate(words) if word)
        raise RuntimeError(f"{self.name}: {told}")

    @property
    def own(self) -> slice:
        """This process's rows among those of all: they lie one process after the other."""
        first = sum(self.counts[: self.rank])
        return slice(first, first + self.counts[self.rank])

    def gather(self, rows: Tensor) -> Tensor:
        """(n, ...) of each process, as (sum of n, ...), the same to the bit on every one."""
        most = max(self.counts)
        if rows.shape[0] < most:
            padding = rows.new_zeros((most - rows.shape[0], *rows.shape[1:]))
            rows = torch.cat([rows, padding])
        found = self._all(rows)
        if min(self.counts) == most:
            return found.flatten(0, 1)
        return torch.cat([part[:count] for part, count in zip(found, self.counts, strict=True)])

    def gather_sum(self, rows: Tensor) -> Tensor:
        """Of (sum of n, ...) numbers the sum over processes of the own n, in the order of ranks."""
        count = self.counts[self.rank]
        found = rows.new_empty((self.size, count, *rows.shape[1:]))
        dist.all_to_all_single(
            found.view(self.size * count, *rows.shape[1:]),
            rows.contiguous(),
            [count] * self.size,
            self.counts,
            group=self.group,
        )
        total = found[0]
        for part in found[1:]:
            total = total + part
        return total

    def sum_of(self, numbers: Tensor) -> Tensor:
        """Of (k,) numbers of each process the sums, in the order of ranks."""
        return self._all(numbers[None])[:, 0].sum(0)

    def pass_around(self, own: Sequence[Tensor], visit: Callable[[list[Tensor]], None]) -> None:
        """A ring: visit is called with the (n, ...) tensors of every process, its own first, then
        those of the ones before it. The next are under way while some are looked at, and nothing
        else is held."""
        here = list(own)
        for step in range(1, self.size):
            count = self.counts[(self.rank - step) % self.size]
            coming = [t.new_empty((count, *t.shape[1:])) for t in here]
            under_way = self._pass_on(here, coming)
            visit(here)
            while under_way:
                under_way.pop().wait()  # and forgotten: it holds what it sent
            here = coming
        visit(here)

    def _pass_on(self, given: list[Tensor], coming: list[Tensor]) -> list[Any]:
        """Starts to send to the next process and to receive from the one before; what is empty,
        which both know, goes no way."""
        after, before = ((self.rank + step) % self.size for step in (1, -1))
        ways = (dist.isend, given, after), (dist.irecv, coming, before)
        group: Any = dist.group.WORLD if self.group is None else self.group
        messages = [
            dist.P2POp(way, _as_sent(t), dist.get_global_rank(group, peer), group, tag)
            for way, tensors, peer in ways
            for tag, t in enumerate(tensors)
            if t.numel()
        ]
        return dist.batch_isend_irecv(messages) if messages else []

    def _objects(self, own: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, own, group=self.group)
        return found

    def _all(self, tensor: Tensor) -> Tensor:
        """(size, ...): of every process what it gave, of one shape on all of them."""
        found = tensor.new_empty((self.size * tensor.shape[0], *tensor.shape[1:]))
        _gather_into(_as_sent(found), _as_sent(tensor.contiguous()), group=self.group)
        return found.view(self.size, *tensor.shape)


def message_of(stats: RowStatistics, *more: Tensor) -> list[Tensor]:
    """Two messages (n, k), of numbers and of counts."""
    numbers = [s for s in (*stats, *more) if s.is_floating_point()]
    return [torch.stack(numbers, 1), torch.stack([stats.pos_kept, stats.neg_kept], 1)]


def from_message(numbers: Tensor, counts: Tensor) -> tuple[RowStatistics, list[Tensor]]:
    """The statistics, and what more there was."""
    columns = list(numbers.T.contiguous())
    pos_kept, neg_kept = counts.T.contiguous()
    stats = RowStatistics._make([*columns[:4], pos_kept, neg_kept, columns[4]])
    return stats, columns[5:]


def _as_sent(tensor: Tensor) -> Tensor:
    """Not every backend knows bfloat16, nor integers of 16 bits: of what is only moved the type
    does not matter."""
    return tensor.view(torch.float16) if tensor.dtype == torch.bfloat16 else tensor


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
