"""Similarities of a panel: products of rows, or their distances, and how pairs of these weigh.

dS / dx of a distance is a multiple of r - x, so what a pair weighs on its rows is a weight on their
product, less the same weight on themselves.
"""

from typing import Any

import torch
from torch import Tensor

# So many rows tell where the middle is; it need not be exact.
SAMPLED = 1024


def similarities(x: Tensor, r: Tensor, distance: str | None, middle: Tensor | None) -> Tensor:
    """(rows, M): x . r, or less the distance or its square, of differences: equal rows have 0.

    middle: of the rows, from which a derivative of distances is computed; None where none is asked.
    """
    if distance is None:
        return x @ r.T
    if torch.is_grad_enabled() and (x.requires_grad or r.requires_grad):
        found: Tensor = _Distances.apply(x, r, middle)  # type: ignore[no-untyped-call]
    else:
        found = _distances(x, r)
    return -found if distance == "euclidean" else -found.square()


def through_distance(weight: Tensor, similarity: Tensor, distance: str) -> Tensor:
    """What a weight on such a similarity is on the product of its rows; on distance 0 nothing."""
    if distance == "squared_euclidean":
        return 2 * weight
    return weight * torch.where(similarity == 0, 0, -1 / similarity)


def middle_of(r: Tensor) -> Tensor:
    """(D,): a median, which a few rows far away, or not finite, do not take with them as they do a
    mean."""
    r = r.detach()
    if r.shape[0] == 0:
        return r.new_zeros(r.shape[1])
    # Sorted: median has no algorithm on a GPU that torch calls deterministic.
    ascending = r[:: 1 + r.shape[0] // SAMPLED].sort(0).values
    middle = ascending[(len(ascending) - 1) // 2]
    return torch.where(middle.isfinite(), middle, 0)


def pull(weight: Tensor, own: Tensor, other: Tensor, middle: Tensor) -> Tensor:
    """sum_j w_ij (other_j - own_i), by products.

    From the middle: far from it they cancel. Distances themselves are of rows as they are, for what
    lies below the rounding of a shifted row would be lost.
    """
    own, other = own - middle, other - middle
    return weight @ other - weight.sum(1)[:, None] * own


def _distances(x: Tensor, r: Tensor) -> Tensor:
    return torch.cdist(x, r, compute_mode="donot_use_mm_for_euclid_dist")


class _Distances(torch.autograd.Function):
    """torch.cdist, whose backward pass on a GPU holds rows x M x D numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor, middle: Tensor) -> Tensor:
        found = _distances(x, r)
        ctx.save_for_backward(x, r, middle, found)
        return found

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, Tensor, None]:
        x, r, middle, found = ctx.saved_tensors
        weight = -through_distance(incoming, -found, "euclidean")
        return pull(weight, x, r, middle), pull(weight.T, r, x, middle), None
