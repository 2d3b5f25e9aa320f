"""Similarities of a panel: products of rows, or their distances, and how pairs of these weigh.

dS / dx of a distance is a multiple of r - x, so what a pair weighs on its rows is a weight on their
product, less the same weight on themselves.
"""

from typing import Any

import torch
from torch import Tensor


def similarities(x: Tensor, r: Tensor, distance: str | None) -> Tensor:
    """(rows, M): x . r, or less the distance or its square, of differences: equal rows have 0."""
    if distance is None:
        return x @ r.T
    if torch.is_grad_enabled() and (x.requires_grad or r.requires_grad):
        found: Tensor = _Distances.apply(x, r)  # type: ignore[no-untyped-call]
    else:
        found = _distances(x, r)
    return -found if distance == "euclidean" else -found.square()


def by_product(weight: Tensor, similarity: Tensor, distance: str) -> Tensor:
    """What a weight on such a similarity is on the product of its rows; on distance 0 nothing."""
    if distance == "squared_euclidean":
        return 2 * weight
    return weight * torch.where(similarity == 0, 0, -1 / similarity)


def _distances(x: Tensor, r: Tensor) -> Tensor:
    return torch.cdist(x, r, compute_mode="donot_use_mm_for_euclid_dist")


class _Distances(torch.autograd.Function):
    """torch.cdist, whose backward pass on a GPU holds rows x M x D numbers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, r: Tensor) -> Tensor:
        found = _distances(x, r)
        ctx.save_for_backward(x, r, found)
        return found

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, Tensor]:
        x, r, found = ctx.saved_tensors
        weight = -by_product(incoming, -found, "euclidean")
        dx = weight @ r - weight.sum(1)[:, None] * x
        return dx, weight.T @ x - weight.sum(0)[:, None] * r
