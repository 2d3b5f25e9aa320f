"""From the losses of anchors to the loss of a batch."""

import torch
from torch import Tensor

from ms_kernels.reference import count_valid
from ms_kernels.rules.sums import total_of


def reduce(total: Tensor, reduction: str, count: int, valid: Tensor | None) -> Tensor:
    """From the sum of row losses (or its gradient) to the reduced loss (or back)."""
    if reduction == "sum":
        return total
    return total / (count if valid is None else valid)


def reduce_rows(
    row_loss: Tensor, kept: Tensor, reduction: str, weight: Tensor | None = None
) -> Tensor:
    """From losses and kept pairs of each row. weight: (N,), of each in the sum and in the mean."""
    if weight is not None:
        losses = weighted(row_loss, weight)
        if reduction == "none":
            return losses
        return total_of(losses) / divisor_of(weight, kept, reduction)
    if reduction == "none":
        return row_loss
    valid = count_valid(kept) if reduction == "mean_valid" else None
    return reduce(row_loss.sum(), reduction, max(row_loss.shape[0], 1), valid)


def weighted(row_loss: Tensor, weight: Tensor) -> Tensor:
    """Losses times weights, (N,) each."""
    # A row of weight 0 does not count, be it NaN; the weight may still learn what it is worth.
    nothing = (weight == 0) & ~row_loss.isfinite()
    return torch.where(nothing, 0, row_loss * weight)


def divisor_of(weight: Tensor, kept: Tensor, reduction: str) -> Tensor:
    """What the sum of weighted losses is divided by: the sum of the weights that count."""
    return divisor_from(share_of_divisor(weight, kept, reduction), reduction)


def share_of_divisor(weight: Tensor, kept: Tensor, reduction: str) -> Tensor:
    """What these anchors add to it."""
    return total_of(torch.where(kept > 0, weight, 0) if reduction == "mean_valid" else weight)


def divisor_from(total: Tensor, reduction: str) -> Tensor:
    """From the shares of all anchors."""
    if reduction == "sum":
        return torch.ones_like(total)
    return torch.where(total == 0, 1, total)
