"""Similarities of pairs that are listed, whatever their labels: never all N x M of them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.checks import check_choice
from ms_kernels.engine.refusals import refuse_second_derivative
from ms_kernels.reference import unit_rows
from ms_kernels.rules.spec import DISTANCES
from ms_kernels.settings import options

# A block holds the rows of both sides, their difference and a gradient.
ARRAYS = 4
WAY_OUT = "take the products of the rows in plain PyTorch"


def listed_similarities(
    embeddings: Tensor,
    ref_emb: Tensor,
    anchors: Tensor,
    candidates: Tensor,
    *,
    normalize: bool = True,
    distance: str | None = None,
) -> Tensor:
    """(L,) similarities of row anchors[k] of embeddings and row candidates[k] of ref_emb.

    x_i . r_j, or with distance "euclidean" -|x_i - r_j|, with "squared_euclidean" -|x_i - r_j|^2,
    whose differences are taken row by row: exact however far from the origin the rows lie. A pair
    that is listed twice is there twice.

    Args:
        embeddings, ref_emb: (N, D) and (M, D) of one dtype and device; they may be the same.
        anchors, candidates: (L,) int64, rows of embeddings and of ref_emb.
        normalize: divide rows by their L2 norm first, as in `multi_similarity_loss`.

    Returns:
        In float32 of half rows, else in their dtype; differentiable once in embeddings and ref_emb.
        The gradient of a distance of 0 is 0. Memory is O(L), and a block of rows at a time.

    Raises:
        ValueError: for another distance, or lists of different lengths.
    """
    check_choice("distance", distance, DISTANCES)
    if anchors.shape != candidates.shape or anchors.ndim != 1:
        raise ValueError(
            f"candidates: expected shape {(anchors.numel(),)} to match anchors, "
            f"got {tuple(candidates.shape)}"
        )
    mutual = ref_emb is embeddings
    with torch.autocast(embeddings.device.type, enabled=False):
        x = _computed(embeddings, normalize)
        r = x if mutual else _computed(ref_emb, normalize)
        found = _Listed.apply(x, r, anchors, candidates, distance)  # type: ignore[no-untyped-call]
    return found  # type: ignore[no-any-return]


def _computed(x: Tensor, normalize: bool) -> Tensor:
    x = x.to(compute_dtype(x))
    return unit_rows(x) if normalize else x


def _blocks(x: Tensor, length: int) -> list[slice]:
    """Of the list: so many pairs that their rows fit options.panel_bytes."""
    fitting = options.panel_bytes // max(1, ARRAYS * x.shape[1] * x.element_size())
    step = max(1, fitting)
    return [slice(start, start + step) for start in range(0, length, step)]


class _Listed(torch.autograd.Function):
    """The gradient gathers the rows again, so that none are kept but x and r themselves."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, r: Tensor, anchors: Tensor, candidates: Tensor, distance: str | None
    ) -> Tensor:
        found = x.new_empty(anchors.shape[0])
        for block in _blocks(x, anchors.shape[0]):
            rows, others = x[anchors[block]], r[candidates[block]]
            if distance is None:
                found[block] = (rows * others).sum(1)
            elif distance == "euclidean":
                found[block] = -(rows - others).norm(dim=1)
            else:
                found[block] = -(rows - others).square().sum(1)
        ctx.distance = distance
        ctx.save_for_backward(x, r, anchors, candidates, found)
        return found

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("listed_similarities", WAY_OUT)
        x, r, anchors, candidates, found = ctx.saved_tensors
        need_dx, need_dr, *_ = ctx.needs_input_grad
        dx = torch.zeros_like(x) if need_dx else None
        dr = torch.zeros_like(r) if need_dr else None
        for block in _blocks(x, anchors.shape[0]):
            a, b = anchors[block], candidates[block]
            worth = _worth(incoming[block], found[block], ctx.distance)[:, None]
            if ctx.distance is None:
                for gradient, index, rows in ((dx, a, r[b]), (dr, b, x[a])):
                    if gradient is not None:
                        gradient.index_add_(0, index, worth * rows)
                continue
            apart = worth * (x[a] - r[b])
            if dx is not None:
                dx.index_add_(0, a, apart)
            if dr is not None:
                dr.index_add_(0, b, -apart)
        return dx, dr, None, None, None


def _worth(incoming: Tensor, found: Tensor, distance: str | None) -> Tensor:
    """What a row, or a difference of rows, counts in the gradient."""
    if distance is None:
        return incoming
    if distance == "squared_euclidean":
        return -2 * incoming
    return torch.where(found == 0, 0, incoming / torch.where(found == 0, 1, found))
