"""Both sides of the pairs in plain PyTorch, and their panels: blocks of rows against all columns.

Half inputs are computed in float32.
"""

import contextlib
from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import Side, compute_dtype
from ms_kernels.backends.plain.distance import middle_of, pull, similarities, through_distance
from ms_kernels.reference import IGNORED, is_floored, row_scale, shares_label, unit_rows
from ms_kernels.rules.spec import PairOptions
from ms_kernels.settings import options

# A product of fewer rows, and the sum into all columns after it, would cost more than they share.
BUSY_ROWS = 32


class Panel(NamedTuple):
    rows: slice
    sim: Tensor  # (rows, M)
    positive: Tensor
    negative: Tensor


class Sides:
    """Both sides in the compute dtype, normalised, and their panels."""

    def __init__(self, rows: Side, columns: Side | None, spec: PairOptions) -> None:
        self_mode = columns is None
        if columns is None:
            if rows.ids is None:
                x, labels, _ = rows  # torch.compile of torch 2.6 traces no _replace
                rows = Side(x, labels, torch.arange(len(labels), device=labels.device))
            columns = rows
        self.rows, self.columns, self.spec = rows, columns, spec
        dtype = compute_dtype(rows.embeddings)
        self.x = computed(rows.embeddings, spec.normalize, dtype)
        self.r = self.x if self_mode else computed(columns.embeddings, spec.normalize, dtype)
        self.middle = None if spec.distance is None else middle_of(self.r)

    def panels(self, arrays: int = 1) -> Iterator[Panel]:
        """Blocks of rows, so that `arrays` of a panel's size fit options.panel_bytes; of many
        columns as many rows as keep a product busy, if one such array fits."""
        height = self.height(arrays)
        for start in range(0, len(self.x), height):
            block = slice(start, start + height)
            yield self.panel(block, self.x, self.r)

    def height(self, arrays: int) -> int:
        fitting = options.panel_bytes // max(1, len(self.r) * self.r.element_size())
        return max(1, fitting // arrays, min(BUSY_ROWS, fitting))

    def panel(self, block: slice, x: Tensor, r: Tensor) -> Panel:
        """Of some rows: x and r are those of this object, or stand for them in a derivative."""
        rows, columns = self.rows, self.columns
        sim = similarities(x[block], r, self.spec.distance, self.middle)
        positive = shares_label(rows.labels[block], columns.labels)
        negative = ~positive
        if rows.ids is not None and columns.ids is not None:
            other = rows.ids[block, None] != columns.ids[None, :]
            other &= (rows.ids[block, None] != IGNORED) & (columns.ids[None, :] != IGNORED)
            positive, negative = positive & other, negative & other
        if self.spec.max_positive_similarity is not None:
            positive = positive & (sim < self.spec.max_positive_similarity)
        return Panel(block, sim, positive, negative)

    def add_gradient(
        self, panel: Panel, weight: Tensor, dx: Tensor | None, dr: Tensor | None
    ) -> None:
        """Of pairs that weigh dl / dS, into the rows of dx and into dr: of what `panel` computes
        with."""
        x, r = self.x[panel.rows], self.r
        if self.middle is None or self.spec.distance is None:
            if dx is not None:
                dx[panel.rows] += weight @ r
            if dr is not None:
                dr += weight.T @ x
            return
        weight = through_distance(weight, panel.sim, self.spec.distance)
        if dx is not None:
            dx[panel.rows] += pull(weight, x, r, self.middle)
        if dr is not None:
            dr += pull(weight.T, r, x, self.middle)


def full_precision(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Autocast would round the similarities to half, and mine with them."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.autocast(x.device.type, enabled=False)
    return contextlib.nullcontext()


def through_normalisation(
    dx: Tensor, unit: Tensor, embeddings: Tensor, spec: PairOptions
) -> Tensor:
    """From the gradient of unit rows to that of the embeddings: 0 where those have no direction,
    or NaN where it is not finite."""
    if not spec.normalize:
        return dx
    wide = embeddings.to(dx.dtype)
    scale = row_scale(wide)
    norm = (wide / scale).norm(dim=1, keepdim=True) * scale
    projected = (dx - (dx * unit).sum(1, keepdim=True) * unit) / norm
    return torch.where(is_floored(norm), 0 * dx, projected)


def computed(x: Tensor, normalize: bool, dtype: torch.dtype | None = None) -> Tensor:
    """In the compute dtype, its own or that of what it is compared with, as unit rows if asked."""
    x = x.to(compute_dtype(x) if dtype is None else dtype)
    return unit_rows(x) if normalize else x
