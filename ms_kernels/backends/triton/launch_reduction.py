"""Launches the reduction: see `reduction.py`."""

from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.triton.reduction import reduce_kernel
from ms_kernels.backends.triton.tape import launch_kernel

# Losses that the one program adds at once.
AT_ONCE = 1024


class Reduced(NamedTuple):
    loss: Tensor  # ()
    scale: Tensor  # (1): of the gradient of the sum of losses
    poison: Tensor  # (1): NaN if a loss is


def reduced(
    row_loss: Tensor,
    valid: Tensor | None = None,
    reduction: str = "sum",
    dtype: torch.dtype | None = None,
) -> Reduced:
    """Of (N) losses. valid: (N) of "mean_valid". dtype: of the loss; default that of the losses."""
    loss = row_loss.new_empty((), dtype=dtype or row_loss.dtype)
    scale, poison = row_loss.new_empty(1), row_loss.new_empty(1)
    launch_kernel(
        reduce_kernel,
        (1,),
        *(row_loss, row_loss if valid is None else valid, loss, scale, poison),
        row_loss.shape[0],
        REDUCTION=reduction,
        BLOCK=AT_ONCE,
        num_warps=8,
    )
    return Reduced(loss, scale, poison)
