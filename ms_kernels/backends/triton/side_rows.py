"""One side of the pairs as the kernels want it: sorted by label, copied, padded."""

import copy

import torch
import triton
from torch import Tensor

from ms_kernels.backends.interface import Side
from ms_kernels.backends.triton.order import range_kernel, rank_kernel, search_kernel
from ms_kernels.backends.triton.rows import copy_kernel
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.backends.triton.tiles import Tiles, interpreted

# Above this, sorting is cheaper than comparing all labels with all; less than 2^15.
MOST_COUNTED = 8192
# Few samples of each program, so that a batch of a thousand keeps a GPU busy; in the interpreter,
# which takes its time for each program, more.
AT_ONCE = {"BLOCK": 32 if interpreted() else 8, "WIDE": 256}
SEARCHED = 32

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
