"""Distances as products of longer rows, as `products.py` says, by a launch a side.

Here a batch with itself stays one: `copy_kernel` writes its rows a second time, as candidates.
"""

from typing import Any

import torch
import triton
from torch import Tensor

from ms_kernels.backends.interface import Side, compute_dtype
from ms_kernels.backends.triton.longer import ADDED, longer_kernel, middle_kernel, shorter_kernel
from ms_kernels.backends.triton.side_rows import rows_at_once
from ms_kernels.backends.triton.tape import launch_kernel
from ms_kernels.rules.spec import PairSpec

# Rows that tell where the middle is; columns of one program.
MIDDLE = {"SAMPLED": 32, "BLOCK_D": 16}


class Longer:
    """A side with its rows made longer, and the way back of their gradient.

    middle: (D), from which its rows are taken; None: as they are.
    """

    def __init__(
        self, side: Side, normalize: bool, middle: Tensor | None, is_candidate: bool
    ) -> None:
        x = side.embeddings.detach()
        self.count, self.width = x.shape
        self.normalize, self.is_candidate = normalize, is_candidate
        new: Any = {"dtype": compute_dtype(x), "device": x.device}
        rows = torch.empty(self.count, int(ADDED.value) + self.width, **new)
        self.norm = torch.empty(self.count, **new)
        self.middle = self.norm if middle is None else middle  # else never read
        self.side = Side(rows, side.labels, side.ids)
        if self.count:
            launch_kernel(
                longer_kernel,
                self._grid(),
                x,
                *x.stride(),
                self.middle,
                rows,
                self.norm,
                self.count,
                self.width,
                SHIFTED=middle is not None,
                **self._constants(),
            )

    def gradient(self, of_longer: Tensor | None) -> Tensor | None:
        """(N, D) of the rows that were given, from that of the longer ones."""
        if of_longer is None:
            return None
        rows = self.side.embeddings
        dx = torch.empty(self.count, self.width, dtype=rows.dtype, device=rows.device)
        if dx.numel():
            launch_kernel(
                shorter_kernel,
                self._grid(),
                *(of_longer, rows, self.middle, self.norm, dx),
                self.count,
                self.width,
                **self._constants(),
            )
        return dx

    def _grid(self) -> tuple[int]:
        return (triton.cdiv(self.count, self._constants()["ROWS"]),)

    def _constants(self) -> dict[str, int]:
        rows, piece = rows_at_once(max(16, self.width), self.norm.itemsize)
        return {
            "NORMALIZE": self.normalize,
            "CANDIDATE": self.is_candidate,
            "ROWS": rows,
            "BLOCK_D": piece,
        }


class Sides:
    """Both sides as kernels multiply them: longer ones where a distance is asked for.

    exchanged: the rows are the candidates.
    """

    def __init__(
        self, rows: Side, columns: Side | None, spec: PairSpec, exchanged: bool = False
    ) -> None:
        self.rows, self.columns = rows, columns
        self._own = self._other = None
        if spec.distance is None:
            return
        # Of the candidates alone: all who compare the same pairs know them, so that what was the
        # hardest has the same bits again, whichever anchors are at hand and whoever is first.
        candidates = rows if columns is None or exchanged else columns
        middle = _middle(candidates, spec.normalize)
        self._own = Longer(rows, spec.normalize, middle, is_candidate=False)
        self.rows = self._own.side
        if columns is not None:
            self._other = Longer(columns, spec.normalize, middle, is_candidate=True)
            self.columns = self._other.side

    def of_rows(self, gradient: Tensor | None) -> Tensor | None:
        return gradient if self._own is None else self._own.gradient(gradient)

    def of_columns(self, gradient: Tensor | None) -> Tensor | None:
        return gradient if self._other is None else self._other.gradient(gradient)


def _middle(side: Side, normalize: bool) -> Tensor:
    """(D) medians of some rows; of unit ones, which may all point one way, if asked."""
    x = side.embeddings.detach()
    count, width = x.shape
    strides, skipped = x.stride(), 0
    middle = torch.empty(width, dtype=compute_dtype(x), device=x.device)
    if not width:
        return middle
    if normalize and count:
        # Rows at equal steps stand for all, as if they were a side of their own.
        step = max(1, count // MIDDLE["SAMPLED"])
        count = min(count, MIDDLE["SAMPLED"])
        few = torch.empty(count, int(ADDED.value) + width, dtype=middle.dtype, device=x.device)
        norm = torch.empty(count, dtype=middle.dtype, device=x.device)
        rows, piece = rows_at_once(max(16, width), middle.itemsize)
        launch_kernel(
            longer_kernel,
            (triton.cdiv(count, rows),),
            *(x, strides[0] * step, strides[1], middle, few, norm),
            *(count, width),
            NORMALIZE=True,
            SHIFTED=False,
            CANDIDATE=False,
            ROWS=rows,
            BLOCK_D=piece,
        )
        x, strides, skipped = few, few.stride(), int(ADDED.value)
    launch_kernel(
        middle_kernel,
        (triton.cdiv(width, MIDDLE["BLOCK_D"]),),
        *(x, *strides, skipped, middle),
        *(count, width),
        **MIDDLE,
    )
    return middle
