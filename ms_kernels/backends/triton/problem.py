"""Both sides of the pairs as the kernels want them: sorted by label, copied, padded."""

import struct
from typing import Any

import torch
import triton
from torch import Tensor

from ms_kernels.backends.interface import Side
from ms_kernels.backends.triton.coefficients import coefficients_kernel
from ms_kernels.backends.triton.order import range_kernel, rank_kernel
from ms_kernels.backends.triton.pairs import DIAGONAL, GIVEN, NO_IDS
from ms_kernels.backends.triton.rows import copy_kernel
from ms_kernels.backends.triton.rule_table import (
    MINING_RULES,
    WEIGHTING_RULES,
    Coefficients,
    coefficients_of,
    is_bounded,
)
from ms_kernels.backends.triton.tiles import Tiles, mode_of, tiles_of
from ms_kernels.rules.spec import PairSpec

# Two programs for each processor of a large GPU; a constant, as bits depend on it.
BUSY = 264
# Above this, sorting is cheaper than comparing all labels with all.
MOST_COUNTED = 8192
AT_ONCE = {"BLOCK": 32, "WIDE": 256}
# exp of +-75 and sums of 2^17 of them are normal float32 numbers; of +-600, float64.
BOUND = {torch.float32: 75.0, torch.float64: 600.0}


def rows_at_once(depth: int, itemsize: int = 4) -> tuple[int, int]:
    """Rows and piece of their depth that one program handles; rows divide every padding.

    Of float64 half as many: their registers are two each.
    """
    width = min(1024, int(triton.next_power_of_2(depth)))
    return min(128, int(8192 // width)) // itemsize, width


class Rows:
    """One side, in label order. Arrays are as long as `padded`; what is past `count` is inert."""

    def __init__(self, side: Side, spec: PairSpec, tiles: Tiles, mode: str, operand: torch.dtype):
        x = side.embeddings
        self.device = x.device
        self.count, self.width = int(x.shape[0]), int(x.shape[1])
        block = max(tiles.scan.block_m, tiles.scan.block_n)
        self.padded = max(1, triton.cdiv(self.count, block)) * block
        piece = max(tiles.scan.block_k, tiles.weights.block_k)
        piece = min(piece, max(16, triton.next_power_of_2(self.width)))
        self.stride = int(max(1, triton.cdiv(self.width, piece)) * piece)
        self.dtype = torch.float64 if operand == torch.float64 else torch.float32

        self.order, self.first, self.last = self._sorted(side.labels)
        self.ids = self._padded(side.ids) if side.ids is not None else self.order
        self.copy = torch.empty(self.padded, self.stride, dtype=operand, device=self.device)
        self.scale = torch.empty(self.padded, dtype=self.dtype, device=self.device)
        self.norm = torch.empty_like(self.scale)
        self.poisoned = torch.zeros(1, dtype=torch.int32, device=self.device)
        height, width = rows_at_once(self.stride, self.dtype.itemsize)
        copy_kernel[(triton.cdiv(self.padded, height),)](
            x,
            x.stride(0),
            x.stride(1),
            self.order,
            self.copy,
            self.scale,
            self.norm,
            self.poisoned,
            self.count,
            self.width,
            self.stride,
            NORMALIZE=spec.normalize,
            SCALED=mode == "tf32" or 2 in (operand.itemsize, x.dtype.itemsize),
            ROUND=mode == "tf32",
            ROWS=height,
            BLOCK_D=width,
        )

    def integers(self) -> Tensor:
        return torch.zeros(self.padded, dtype=torch.int32, device=self.device)

    def ranges_among(self, own_labels: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Where the labels of these rows lie among other, sorted labels."""
        first, last = self.integers(), self.integers()
        own_labels, labels = own_labels.contiguous(), labels.contiguous()
        if self.count == 0:
            return first, last
        if max(self.count, len(labels)) <= MOST_COUNTED:
            range_kernel[(triton.cdiv(self.count, 32),)](
                own_labels, self.order, labels, first, last, self.count, len(labels), **AT_ONCE
            )
            return first, last
        own = own_labels[self.order[: self.count].long()]
        _search(labels.sort().values, own, first, last)
        return first, last

    def _sorted(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The sample at each place, and the range of places with its label."""
        order, first, last = self.integers(), self.integers(), self.integers()
        if 0 < self.count <= MOST_COUNTED:
            rank_kernel[(triton.cdiv(self.count, 32),)](
                labels, order, first, last, self.count, **AT_ONCE
            )
        elif self.count:
            values, places = labels.sort(stable=True)
            order[: self.count] = places
            _search(values, values, first, last)
        return order, first, last

    def _padded(self, ids: Tensor) -> Tensor:
        padded = torch.zeros(self.padded, dtype=torch.int64, device=self.device)
        padded[: self.count] = ids[self.order[: self.count].long()]
        return padded


def _search(sorted_labels: Tensor, wanted: Tensor, first: Tensor, last: Tensor) -> None:
    count = len(wanted)
    first[:count] = torch.searchsorted(sorted_labels, wanted, side="left")
    last[:count] = torch.searchsorted(sorted_labels, wanted, side="right")


class Problem:
    """Rows, columns (the same object in self mode), coefficients, and how to multiply."""

    def __init__(
        self,
        rows: Side,
        columns: Side | None,
        spec: PairSpec,
        tiles: Tiles | None = None,  # default: those of the mode and device
        wide: bool = False,  # weights may be of any size
    ) -> None:
        rows = _contiguous(rows)
        self.spec = spec
        self.mode, operand = mode_of(rows.embeddings.dtype, rows.embeddings.shape[1], wide)
        self.tiles = tiles or tiles_of(self.mode, rows.embeddings.device)
        self.rows = Rows(rows, spec, self.tiles, self.mode, operand)
        self.symmetric = columns is None
        if columns is None:
            self.columns, self.first, self.last = self.rows, self.rows.first, self.rows.last
        else:
            columns = _contiguous(columns)
            self.columns = Rows(columns, spec, self.tiles, self.mode, operand)
            self.first, self.last = self.rows.ranges_among(rows.labels, columns.labels)
        if rows.ids is not None:
            self.id_mode = GIVEN.value
        else:
            self.id_mode = DIAGONAL.value if self.symmetric else NO_IDS.value
        dtype, count = self.rows.dtype, self.columns.count
        self.rule = WEIGHTING_RULES[type(spec.weighting)]
        self.mining = MINING_RULES[type(spec.mining)]
        self.hardest_negatives = self.mining.hardest_negatives(spec.mining)
        self.bounded = is_bounded(spec, count, BOUND[dtype])
        values = coefficients_of(spec, torch.finfo(dtype).max)
        self.coefficients = _coefficients_on(self.rows.device, dtype, values)

    @property
    def ranked(self) -> bool:
        """Whether anchors list their positives: see `ranked.py`."""
        return self.rule.negative == "ranked"

    @property
    def pair_constants(self) -> dict[str, Any]:
        """What the weight of a pair depends on, of the kernels of the gradient."""
        return {
            "ID_MODE": self.id_mode,
            # One exponential for both sides: with factors and offsets of any size it would cost
            # more registers than it is worth.
            "BOUNDED": self.bounded and self.rule.shares,
            "NEGATIVE": self.rule.negative,
            "POSITIVE": self.rule.positive,
            "SIGN": self.rule.sign,
            "HAS_OFFSET": self.rule.has_offset,
            "ONE_FACTOR": self.rule.one_factor,
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
    """(9,) in the compute dtype, as `coefficients.py` reads them."""
    coefficients = torch.empty(len(values), dtype=dtype, device=device)
    bits = struct.unpack(f"{len(values)}q", struct.pack(f"{len(values)}d", *values))
    coefficients_kernel[(1,)](coefficients, *bits)
    return coefficients
