"""Rows of all processes that autograd knows, for losses that are told no labels."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from ms_kernels.engine.exchange import Exchange
from ms_kernels.engine.refusals import refuse_second_derivative


def gather_rows(rows: Tensor, group: Any = None) -> Tensor:
    """The rows of all processes of torch.distributed, those of rank 0 first: for `clip_loss` and
    `siglip_loss` of the global batch.

    Args:
        rows: (n, D) of this process; n may be another on each.
        group: of torch.distributed. Default: all processes.

    Returns:
        (sum of n, D), the same on every process; differentiable once. The gradient of a process's
        rows is the sum of what all processes ask of them, so that of a loss that each computes in
        whole, it is the number of processes times that of one: DistributedDataParallel, which
        divides by it, gives every parameter the gradient of one process that has all rows. Without
        a process group, or of one process, rows themselves.

    Raises:
        RuntimeError: on every process, with what one of them has to say of its rows.
        ValueError: if D, the dtype, or whether a gradient is wanted, is not the same on all.

    >>> loss = clip_loss(gather_rows(image), gather_rows(text), log_scale.exp())
    """
    if not dist.is_available() or not dist.is_initialized() or dist.get_world_size(group) == 1:
        return rows
    error, facts, count, wanted = None, {}, 0, False
    device = rows.device if isinstance(rows, Tensor) else torch.device("cpu")
    if not isinstance(rows, Tensor) or rows.ndim != 2:
        got = tuple(rows.shape) if isinstance(rows, Tensor) else type(rows).__name__
        error = f"ValueError: rows: expected a tensor of shape (n, D), got {got}"
    else:
        wanted, count = rows.requires_grad and torch.is_grad_enabled(), rows.shape[0]
        facts = {"rows": f"shape (n, {rows.shape[1]}) of {rows.dtype}", "gradient": str(wanted)}
    exchange = Exchange(group, device, "gather_rows")
    exchange.agree(facts, count, wanted, error)
    return _Gathered.apply(rows, exchange)  # type: ignore[no-any-return, no-untyped-call]


class _Gathered(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.gather(rows)

    @staticmethod
    def backward(ctx: Any, incoming: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative("gather_rows", "gather them with another op")
        return ctx.exchange.gather_sum(incoming), None
