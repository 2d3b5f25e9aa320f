"""Similarities of pairs that are listed, whatever their labels: never all N x M of them."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.backends.plain.distance import middle_of, pull, similarities, through_distance
from ms_kernels.checks import check_choice
from ms_kernels.engine.refusals import refuse_second_derivative, refuse_transforms
from ms_kernels.reference import unit_rows
from ms_kernels.rules.spec import DISTANCES
from ms_kernels.settings import options

# A block holds the rows of both sides, their difference and a gradient.
ARRAYS = 4
# One listed pair costs as much as so many of a product of matrices.
MANY = 8
Both = tuple[Tensor, Tensor]
Wanted = tuple["Tensor | None", "Tensor | None"]
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
    of differences: exact however far from the origin the rows lie. A pair that is listed twice is
    there twice.

    Args:
        embeddings, ref_emb: (N, D) and (M, D) of one dtype and device; they may be the same.
        anchors, candidates: (L,) int64, rows of embeddings and of ref_emb.
        normalize: divide rows by their L2 norm first, as in `multi_similarity_loss`.

    Returns:
        In float32 of half rows, else in their dtype; differentiable once in embeddings and ref_emb.
        The gradient of a distance of 0 is 0. Memory is O(L) and a block of rows or, of lists that
        hold many of all pairs, a panel of similarities.

    Raises:
        ValueError: for another distance, or lists of different lengths.
        RuntimeError: under transforms of torch.func, and for another derivative than the first of
            reverse mode.
    """
    check_choice("distance", distance, DISTANCES)
    if anchors.shape != candidates.shape or anchors.ndim != 1:
        raise ValueError(
            f"candidates: expected shape {(anchors.numel(),)} to match anchors, "
            f"got {tuple(candidates.shape)}"
        )
    if not torch.compiler.is_compiling():
        sides = {"embeddings": embeddings, "ref_emb": ref_emb}
        refuse_transforms("listed_similarities", WAY_OUT, **sides)
    mutual = ref_emb is embeddings
    with torch.autocast(embeddings.device.type, enabled=False):
        x = _computed(embeddings, normalize)
        r = x if mutual else _computed(ref_emb, normalize)
        if distance is not None and not normalize:
            # Far from the origin the products of the gradient would cancel.
            middle = (r.detach() / max(r.shape[0], 1)).sum(0)
            x = x - middle
            r = x if mutual else r - middle
        found = _Listed.apply(x, r, anchors, candidates, distance)  # type: ignore[no-untyped-call]
    return found  # type: ignore[no-any-return]


def _computed(x: Tensor, normalize: bool) -> Tensor:
    x = x.to(compute_dtype(x))
    return unit_rows(x) if normalize else x


class _Listed(torch.autograd.Function):
    """The gradient looks at the rows again, so that none are kept but x and r themselves."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, r: Tensor, anchors: Tensor, candidates: Tensor, distance: str | None
    ) -> Tensor:
        found = x.new_empty(anchors.shape[0])
        if _are_many(x, r, anchors):
            for panel in _panels(x, r, anchors):
                sim = similarities(x[panel.rows], r, distance, None)
                own = anchors[panel.pairs] - panel.rows.start
                found[panel.pairs] = sim[own, candidates[panel.pairs]]
        else:
            for block in _blocks(x, anchors.shape[0]):
                found[block] = _pair_by_pair(x[anchors[block]], r[candidates[block]], distance)
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
        if ctx.distance is not None:
            incoming = through_distance(incoming, found, ctx.distance)
        of = _of_panels if _are_many(x, r, anchors) else _of_blocks
        of((x, r), (anchors, candidates), incoming, ctx.distance is not None, (dx, dr))
        return dx, dr, None, None, None


def _pair_by_pair(rows: Tensor, others: Tensor, distance: str | None) -> Tensor:
    if distance is None:
        return (rows * others).sum(1)
    apart = rows - others
    return -apart.norm(dim=1) if distance == "euclidean" else -apart.square().sum(1)


def _of_blocks(sides: Both, pairs: Both, weight: Tensor, apart: bool, into: Wanted) -> None:
    """Gradients of pairs that weigh so much on the product of their rows, and, of a distance, as
    much less on the rows themselves."""
    (x, r), (dx, dr) = sides, into
    for block in _blocks(x, len(weight)):
        a, b = (index[block] for index in pairs)
        rows, others, worth = x[a], r[b], weight[block, None]
        if dx is not None:
            dx.index_add_(0, a, worth * (others - rows if apart else others))
        if dr is not None:
            dr.index_add_(0, b, worth * (rows - others if apart else rows))


def _of_panels(sides: Both, pairs: Both, weight: Tensor, apart: bool, into: Wanted) -> None:
    """The same by products of matrices."""
    (x, r), (dx, dr), (anchors, candidates) = sides, into, pairs
    middle = middle_of(r) if apart else None
    for panel in _panels(x, r, anchors):
        rows = x[panel.rows]
        places = (anchors[panel.pairs] - panel.rows.start) * len(r) + candidates[panel.pairs]
        flat = x.new_zeros(len(rows) * len(r)).index_add_(0, places, weight[panel.pairs])
        dense = flat.view(len(rows), len(r))
        if dx is not None:
            dx[panel.rows] += dense @ r if middle is None else pull(dense, rows, r, middle)
        if dr is not None:
            dr += dense.T @ rows if middle is None else pull(dense.T, r, rows, middle)


class _Panel(NamedTuple):
    rows: slice  # of x
    pairs: Tensor | slice  # those of the list whose anchors they are


def _are_many(x: Tensor, r: Tensor, anchors: Tensor) -> bool:
    """So many of all pairs that a product of matrices is faster than to gather rows."""
    few: bool = anchors.shape[0] * MANY <= x.shape[0] * r.shape[0]
    return not few


def _panels(x: Tensor, r: Tensor, anchors: Tensor) -> Iterator[_Panel]:
    n = x.shape[0]
    height = max(1, options.panel_bytes // max(1, r.shape[0] * r.element_size()))
    if height >= n:
        yield _Panel(slice(0, n), slice(None))
        return
    order = anchors.argsort()
    ascending = anchors[order]
    starts = torch.arange(0, n + height, height, device=anchors.device)
    edges = torch.searchsorted(ascending, starts[1:-1]).tolist()
    for number, (first, end) in enumerate(itertools.pairwise([0, *edges, len(order)])):
        yield _Panel(slice(number * height, min(n, (number + 1) * height)), order[first:end])


def _blocks(x: Tensor, length: int) -> list[slice]:
    """Of the list: so many pairs that their rows fit options.panel_bytes."""
    fitting = options.panel_bytes // max(1, ARRAYS * x.shape[1] * x.element_size())
    step = max(1, fitting)
    return [slice(start, start + step) for start in range(0, length, step)]
