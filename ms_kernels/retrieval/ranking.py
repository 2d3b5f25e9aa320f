"""The K best of a gallery that comes block by block: by similarity, then by the lower index.

`torch.topk` does not say which of equal numbers it takes, and takes others in panels of another
shape. So what is compared is never equal: a float32 similarity and its index are one int64.
"""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

NOBODY = -(2**63)  # below every packed pair
LOW = 2**31 - 1  # the greatest index
BITS = 32


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
        bits = (sim + 0.0).view(torch.int32)  # -0.0 + 0.0 is 0.0
        bits ^= (bits >> (BITS - 1)) & LOW  # negative numbers fall where their bits rise
        keys = bits.to(torch.int64).bitwise_left_shift_(BITS)
        last = first + sim.shape[1]
        keys += LOW - torch.arange(first, last, device=sim.device)
        if excluded.numel():
            keys.masked_fill_(excluded, NOBODY)
        k = self.keys.shape[1]
        if keys.shape[1] > k:
            keys = keys.topk(k).values
        self.keys = torch.cat([self.keys, keys], dim=1).topk(k).values

    def best(self) -> tuple[Tensor, Tensor]:
        nobody = self.keys == NOBODY
        index = (LOW - (self.keys & (2**BITS - 1))).masked_fill_(nobody, -1)
        bits = (self.keys >> BITS).to(torch.int32)
        bits ^= (bits >> (BITS - 1)) & LOW
        return bits.view(torch.float32).masked_fill_(nobody, -torch.inf), index


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
