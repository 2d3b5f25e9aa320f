"""Both sides of the pairs as the kernels want them: sorted by label, copied, padded."""

import copy
import struct
from typing import Any

import torch
import triton
from torch import Tensor

from ms_kernels.backends.interface import Side
from ms_kernels.backends.triton.coefficients import coefficients_kernel
from ms_kernels.backends.triton.order import range_kernel, rank_kernel, search_kernel
from ms_kernels.backends.triton.pairs import DIAGONAL, GIVEN, NO_IDS
from ms_kernels.backends.triton.rows import copy_kernel
from ms_kernels.backends.triton.rule_table import (
    MINING_RULES,
    WEIGHTING_RULES,
    Coefficients,
    coefficients_of,
    is_bounded,
)
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.backends.triton.tiles import Tiles, interpreted, mode_of, tiles_of
from ms_kernels.rules.spec import PairSpec

# Two programs for each processor of a large GPU; a constant, as bits depend on it.
BUSY = 264
# Above this, sorting is cheaper than comparing all labels with all; less than 2^15.
MOST_COUNTED = 8192
# Few samples of each program, so that a batch of a thousand keeps a GPU busy; in the interpreter,
# which takes its time for each program, more.
AT_ONCE = {"BLOCK": 32 if interpreted() else 8, "WIDE": 256}
SEARCHED = 32
# exp of +-75 and sums of 2^17 of them are normal float32 numbers; of +-600, float64.
BOUND = {torch.float32: 75.0, torch.float64: 600.0}


Ranges = tuple[Tensor, Tensor]  # first and last place, (padded) each


def rows_at_once(depth: int, itemsize: int = 4) -> tuple[int, int]:
    """Rows and piece of their depth that one program handles; rows divide every padding.

    Of float64 half as many: their registers are two each.
    """
    width = min(1024, int(triton.next_power_of_2(depth)))
    return min(128, int(8192 // width)) // itemsize, width


class Rows:
    """One side, in label order. Arrays are as long as `padded`; what is past `count` is inert."""

    def __init__(
        self,
        side: Side,
        normalize: bool,
        tiles: Tiles,
        mode: str,
        operand: torch.dtype,
        as_candidates: bool = False,  # they are candidates of themselves: `candidates` is asked for
    ):
        x = side.embeddings
        self.device = x.device
        self.count, self.width = int(x.shape[0]), int(x.shape[1])
        self.padded = max(1, triton.cdiv(self.count, tiles.block)) * tiles.block
        piece = max(tiles.scan.block_k, tiles.weights.block_k)
        piece = min(piece, max(16, triton.next_power_of_2(self.width)))
        self.stride = int(max(1, triton.cdiv(self.width, piece)) * piece)
        self.dtype = torch.float64 if operand == torch.float64 else torch.float32

        self.order, self.first, self.last = (self._integers() for _ in range(3))
        self.poisoned = torch.empty(1, dtype=torch.int32, device=self.device)
        self.sorted_labels = self._sort(side.labels)
        self.ids = self.order  # a stand-in
        if side.ids is not None:
            self.ids = torch.empty(self.padded, dtype=torch.int64, device=self.device)
        self.copy = torch.empty(self.padded, self.stride, dtype=operand, device=self.device)
        self._turned = torch.empty_like(self.copy) if as_candidates else self.copy
        self.scale = torch.empty(self.padded, dtype=self.dtype, device=self.device)
        self.norm = torch.empty_like(self.scale)
        height, width = rows_at_once(self.stride, self.dtype.itemsize)
        launch_kernel(
            copy_kernel,
            (triton.cdiv(self.padded, height),),
            x,
            x.stride(0),
            x.stride(1),
            self.order,
            self.order if side.ids is None else side.ids,
            self.ids,
            self.copy,
            self._turned,
            self.scale,
            self.norm,
            self.poisoned,
            self.count,
            self.width,
            self.stride,
            GIVEN_IDS=side.ids is not None,
            NORMALIZE=normalize,
            TURNED=as_candidates,
            SCALED=mode == "tf32" or 2 in (operand.itemsize, x.dtype.itemsize),
            ROUND=mode == "tf32",
            ROWS=height,
            BLOCK_D=width,
        )

    def candidates(self) -> "Rows":
        """The same longer rows as candidates of themselves: see `products.py`."""
        found = copy.copy(self)
        found.copy = self._turned
        return found

    def ranges_among(self, own_labels: Tensor, columns: "Rows", labels: Tensor) -> Ranges:
        """Where the labels of these rows lie among those of other rows, sorted."""
        first, last = self._integers(), self._integers()
        own_labels, labels = own_labels.contiguous(), labels.contiguous()
        sorted_labels = columns.sorted_labels
        if sorted_labels is None and self.count > MOST_COUNTED:
            sorted_labels = labels.sort().values
        if sorted_labels is None:
            launch_kernel(
                range_kernel,
                (self.padded // AT_ONCE["BLOCK"],),
                own_labels,
                self.order,
                labels,
                first,
                last,
                self.count,
                len(labels),
                **AT_ONCE,
            )
        else:
            self._search(own_labels, self.order, sorted_labels, first, last, False)
        return first, last

    def _sort(self, labels: Tensor) -> Tensor | None:
        """Fills order and ranges; the sorted labels where they were sorted."""
        if self.count <= MOST_COUNTED:
            launch_kernel(
                rank_kernel,
                (self.padded // AT_ONCE["BLOCK"],),
                *(labels, self.order, self.first, self.last, self.poisoned, self.count),
                **AT_ONCE,
            )
            return None
        values, places = labels.sort(stable=True)
        self._search(values, places, values, self.first, self.last, True)
        return values

    def _search(
        self,
        labels: Tensor,
        samples: Tensor,
        sorted_labels: Tensor,
        first: Tensor,
        last: Tensor,
        is_sorted: bool,
    ) -> None:
        launch_kernel(
            search_kernel,
            (self.padded // SEARCHED,),
            *(labels, samples, self.order, sorted_labels, first, last, self.poisoned),
            *(self.count, len(sorted_labels)),
            SORTED=is_sorted,
            BLOCK=SEARCHED,
        )

    def _integers(self) -> Tensor:
        return torch.empty(self.padded, dtype=torch.int32, device=self.device)


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
        self.rule = WEIGHTING_RULES[type(spec.weighting)]
        wide |= not self.shares
        exact = spec.distance is not None
        self.mode, operand = mode_of(rows.embeddings.dtype, rows.embeddings.shape[1], wide, exact)
        self.tiles = tiles or tiles_of(self.mode, rows.embeddings.device)
        self.mining = MINING_RULES[type(spec.mining)]
        count = (rows if columns is None else columns).embeddings.shape[0]
        dtype = torch.float64 if operand == torch.float64 else torch.float32
        self.bounded = is_bounded(spec, count, BOUND[dtype])
        self.tiles = self._fitting(wide)
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
        values = coefficients_of(spec, torch.finfo(dtype).max)
        self.coefficients = _coefficients_on(self.rows.device, dtype, values)

    def _fitting(self, wide: bool) -> Tiles:
        """The tiles that the registers of these rules allow."""
        tiles = self.tiles
        if self.folded and self.shares and not self.mining.two_sided and not wide:
            return tiles if tiles.lean is None else tiles._replace(scan=tiles.lean)
        owner = {d: t._replace(block_n=min(t.block_n, 64)) for d, t in tiles.owner.items()}
        if self.ranked:  # lists are read by many warps
            owner = {d: t._replace(warps=max(t.warps, t.block_m // 8)) for d, t in owner.items()}
        return tiles._replace(owner=owner)

    @property
    def distance(self) -> str:
        """What similarities are made of products: see `less_distance`."""
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
    """(9,) in the compute dtype, as `coefficients.py` reads them."""
    coefficients = torch.empty(len(values), dtype=dtype, device=device)
    bits = struct.unpack(f"{len(values)}q", struct.pack(f"{len(values)}d", *values))
    launch_kernel(coefficients_kernel, (1,), coefficients, *bits)
    return coefficients
