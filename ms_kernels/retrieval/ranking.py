"""The K best of a gallery that comes block by block: by similarity, then by the lower index.

`torch.topk` does not say which of equal numbers it takes, and takes others in panels of another
shape. So what is compared is never equal: a float32 similarity and its index are one int64.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn.functional import pad

NOBODY = -(2**63)  # below every packed pair
LOW = 2**31 - 1  # the greatest index
BITS = 32
GROUP = 16  # columns whose maximum is looked at first


class Ranking(ABC):
    """The K best candidates so far of some queries."""

    # A panel takes so many bytes a pair, at the peak.
    BYTES: int

    @abstractmethod
    def add(self, sim: Tensor, first: int, excluded: Tensor) -> None:
        """Candidates first, first + 1, ... in rising order, (rows, M') similarities, which are
        overwritten; excluded: (rows, M') bool, or empty where none is."""

    @abstractmethod
    def best(self) -> tuple[Tensor, Tensor]:
        """(rows, K) similarities, falling, and indices; where nobody is left -inf and -1."""


class Packed(Ranking):
    """Of float32: the order of its bits, then the index from above, in one integer."""

    BYTES = 32

    def __init__(self, rows: int, k: int, like: Tensor) -> None:
        self.keys = torch.full((rows, k), NOBODY, dtype=torch.int64, device=like.device)

    def add(self, sim: Tensor, first: int, excluded: Tensor) -> None:
        k = self.keys.shape[1]
        # To look whether there are ties would have a GPU waited for.
        if sim.device.type == "cpu" and sim.shape[1] > k + 1:
            keys = _best_of(sim, first, excluded, k)
        else:
            keys = _packed(sim, _range(sim, first), excluded)
            keys = keys.topk(k).values if keys.shape[1] > k else keys
        self.keys = torch.cat([self.keys, keys], dim=1).topk(k).values

    def best(self) -> tuple[Tensor, Tensor]:
        nobody = self.keys == NOBODY
        index = (LOW - (self.keys & (2**BITS - 1))).masked_fill_(nobody, -1)
        bits = (self.keys >> BITS).to(torch.int32)
        bits ^= (bits >> (BITS - 1)) & LOW
        return bits.view(torch.float32).masked_fill_(nobody, -torch.inf), index


def _packed(sim: Tensor, index: Tensor, excluded: Tensor) -> Tensor:
    """The key of each pair; excluded may be empty."""
    bits = (sim + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
    bits ^= (bits >> (BITS - 1)) & LOW  # negative numbers fall where their bits rise
    keys = bits.to(torch.int64).bitwise_left_shift_(BITS)
    keys += LOW - index
    return keys.masked_fill_(excluded, NOBODY) if excluded.numel() else keys


def _range(sim: Tensor, first: int) -> Tensor:
    return torch.arange(first, first + sim.shape[1], device=sim.device)


def _best_of(sim: Tensor, first: int, excluded: Tensor, k: int) -> Tensor:
    """The k greatest keys of each row; keys are made of those alone, but where the k-th and the
    next are equal, so that only their indices tell which of them it is."""
    if excluded.numel():
        sim.masked_fill_(excluded, -torch.inf)  # no other similarity is
    values, places = _greatest(sim, k + 1)
    keys = _packed(values[:, :k].contiguous(), first + places[:, :k], values.new_empty(0))
    tied = (values[:, k - 1] == values[:, k]).nonzero()[:, 0]
    if tied.numel():
        left_out = excluded[tied] if excluded.numel() else excluded
        every = _packed(sim[tied], _range(sim, first), left_out)
        keys[tied] = every.topk(k).values
    return keys


def _greatest(sim: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`sim.topk(k)` in a third of its time: the k greatest lie in the k groups of columns whose
    maxima are the greatest, or equal others that do."""
    rows, width = sim.shape
    groups = -(-width // GROUP)
    if groups <= 2 * k:
        found = sim.topk(k)
        return found.values, found.indices
    missing = groups * GROUP - width
    padded = pad(sim, (0, missing), value=-torch.inf) if missing else sim
    chosen = padded.view(rows, GROUP, groups).amax(1).topk(k, sorted=False).indices
    step = groups * torch.arange(GROUP, device=sim.device)
    columns = (chosen[:, None, :] + step[:, None]).view(rows, -1)
    values, places = padded.gather(1, columns).topk(k)
    return values, columns.gather(1, places)


class Sorted(Ranking):
    """Of float64, whose bits leave no room for an index: a stable sort."""

    BYTES = 56

    def __init__(self, rows: int, k: int, like: Tensor) -> None:
        self.sim = like.new_full((rows, k), -torch.inf)
        self.index = torch.full((rows, k), -1, dtype=torch.int64, device=like.device)

    def add(self, sim: Tensor, first: int, excluded: Tensor) -> None:
        index = torch.arange(first, first + sim.shape[1], device=sim.device).expand_as(sim)
        if excluded.numel():
            sim = sim.masked_fill(excluded, -torch.inf)
            index = index.masked_fill(excluded, -1)
        # Those of lower index stand first, and a stable sort leaves them there.
        sim, order = torch.cat([self.sim, sim], dim=1).sort(dim=1, descending=True, stable=True)
        k = self.sim.shape[1]
        self.sim = sim[:, :k].clone()
        self.index = torch.cat([self.index, index], dim=1).gather(1, order[:, :k])

    def best(self) -> tuple[Tensor, Tensor]:
        return self.sim, self.index
