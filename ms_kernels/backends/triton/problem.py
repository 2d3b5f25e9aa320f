"""Both sides of the pairs, and what their rules tell the kernels."""

import struct
from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import Side
from ms_kernels.backends.triton.coefficients import coefficients_kernel
from ms_kernels.backends.triton.pairs import DIAGONAL, GIVEN, NO_IDS
from ms_kernels.backends.triton.rule_table import (
    MINING_RULES,
    WEIGHTING_RULES,
    Coefficients,
    coefficients_of,
    is_bounded,
)
from ms_kernels.backends.triton.side_rows import Rows
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.backends.triton.tiles import Tiles, mode_of, tiles_of
from ms_kernels.rules.spec import PairSpec

# Two programs for each processor of a large GPU; a constant, as bits depend on it.
BUSY = 264
# exp of +-75 and sums of 2^17 of them are normal float32 numbers; of +-600, float64.
BOUND = {torch.float32: 75.0, torch.float64: 600.0}


class Problem:
    """Rows, columns (the same object in self mode), coefficients, and how to multiply."""

    def __init__(
        self,
        rows: Side,
        columns: Side | None,
        spec: PairSpec,
        tiles: Tiles | None = None,  # default: those of the mode and device
        wide: bool = False,  # weights may be of any size
        option_values: Tensor | None = None,  # (k): those of the weighting rule, which learns
    ) -> None:
        rows = _contiguous(rows)
        self.spec = spec
        self.rule = WEIGHTING_RULES[type(spec.weighting)]
        wide |= not self.shares
        exact = spec.distance is not None
        self.mode, operand = mode_of(rows.embeddings.dtype, rows.embeddings.shape[1], wide, exact)
        self.tiles = tiles or tiles_of(self.mode, rows.embeddings.device)
        self.mining = MINING_RULES[type(spec.mining)]
        count = (rows if columns is None else columns).embeddings.shape[0]
        dtype = torch.float64 if operand == torch.float64 else torch.float32
        self.bounded = is_bounded(spec, count, BOUND[dtype], known=option_values is None)
        self.tiles = self._fitting(wide)
        if option_values is not None:  # what weights add up to comes from panels
            self.tiles = self.tiles._replace(owner={})
        how = self.normalizes, self.tiles, self.mode, operand
        turned = columns is None and spec.distance is not None
        self.rows = Rows(rows, *how, turned)
        self.symmetric = columns is None
        if columns is None:
            self.columns = self.rows.candidates() if turned else self.rows
            self.first, self.last = self.rows.first, self.rows.last
        else:
            columns = _contiguous(columns)
            self.columns = Rows(columns, *how)
            self.first, self.last = self.rows.ranges_among(
                rows.labels, self.columns, columns.labels
            )
        if rows.ids is not None:
            self.id_mode = GIVEN.value
        else:
            self.id_mode = DIAGONAL.value if self.symmetric else NO_IDS.value
        self.hardest_negatives = self.mining.hardest_negatives(spec.mining)
        rule = spec.weighting if option_values is None else spec.weighting_of(option_values)
        values = coefficients_of(spec, torch.finfo(dtype).max, rule)
        on_device = _coefficients_on if option_values is None else _learned_coefficients_on
        self.coefficients = on_device(self.rows.device, dtype, values)

    def _fitting(self, wide: bool) -> Tiles:
        """The tiles that the registers of these rules allow."""
        tiles = self.tiles
        if self.spec.distance is not None:
            # One tile for all: what was the hardest pair has the same bits in the gradient.
            return tiles._replace(weights=tiles.scan, owner={})
        if self.folded and self.shares and not self.mining.two_sided and not wide:
            return tiles if tiles.lean is None else tiles._replace(scan=tiles.lean)
        owner = {d: t._replace(block_n=min(t.block_n, 64)) for d, t in tiles.owner.items()}
        if self.ranked:  # lists are read by many warps
            owner = {d: t._replace(warps=max(t.warps, t.block_m // 8)) for d, t in owner.items()}
        return tiles._replace(owner=owner)

    @property
    def distance(self) -> str:
        """What similarities are made of products: see `distance_similarity`."""
        return self.spec.distance or "none"

    @property
    def normalizes(self) -> bool:
        """Whether the copies are of unit rows; longer rows have been made of such."""
        return self.spec.normalize and self.spec.distance is None

    @property
    def ranked(self) -> bool:
        """Whether anchors list their positives: see `ranked.py`."""
        return self.rule.negative == "ranked"

    @property
    def shares(self) -> bool:
        """Whether weights are shares of a sum: no pair weighs more than 1."""
        return self.rule.shares

    @property
    def folded(self) -> bool:
        """Whether a negative weighs its exponential times a factor: see `terms.py`."""
        return self.bounded and self.rule.negative == "exponential"

    @property
    def pair_constants(self) -> dict[str, Any]:
        """What the weight of a pair depends on, of the kernels of the gradient."""
        return {
            "ID_MODE": self.id_mode,
            "FOLDED": self.folded,
            "NEGATIVE": self.rule.negative,
            "POSITIVE": self.rule.positive,
            "SIGN": self.rule.sign,
            "HAS_OFFSET": self.rule.has_offset,
            "TWO_SIDED": self.mining.two_sided,
        }

    @property
    def anchor_constants(self) -> dict[str, Any]:
        """What the terms of an anchor depend on."""
        return {
            "RULE": self.rule.name,
            "SIGN": self.rule.sign,
            "MOMENT": self.rule.moment,
            "MINING": self.mining.name,
            "TWO_SIDED": self.mining.two_sided,
            "FOLDED": self.folded,
        }

    def piece(self, block_k: int) -> int:
        """Of the depth; the copies' stride is a multiple of it."""
        return min(block_k, self.rows.stride)

    def other_way(self, first: Tensor, last: Tensor) -> "Problem":
        """The same pairs with rows and columns exchanged."""
        other = object.__new__(Problem)
        other.__dict__.update(self.__dict__)
        other.rows, other.columns, other.first, other.last = self.columns, self.rows, first, last
        return other


def _contiguous(side: Side) -> Side:
    ids = None if side.ids is None else side.ids.contiguous()
    return Side(side.embeddings.detach(), side.labels.contiguous(), ids)


def _coefficients_on(device: torch.device, dtype: torch.dtype, values: Coefficients) -> Tensor:
    """(10,) in the compute dtype, as `coefficients.py` reads them."""
    coefficients = torch.empty(len(values), dtype=dtype, device=device)
    bits = struct.unpack(f"{len(values)}q", struct.pack(f"{len(values)}d", *values))
    launch_kernel(coefficients_kernel, (1,), coefficients, *bits)
    return coefficients


def _learned_coefficients_on(
    device: torch.device, dtype: torch.dtype, values: Coefficients
) -> Tensor:
    """The same of tensors among them."""
    numbers = Coefficients(*(0.0 if isinstance(value, Tensor) else value for value in values))
    coefficients = _coefficients_on(device, dtype, numbers)
    for place, value in enumerate(values):
        if isinstance(value, Tensor):
            coefficients[place].copy_(value)
    return coefficients
