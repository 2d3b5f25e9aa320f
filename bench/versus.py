"""Candidates of one step: refused unless they are equal, then timed in turns."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from bench.baselines import Loss
from bench.timing import Turns


def step_of(function: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Loss and gradient in float64."""
    leaf = x.double().requires_grad_()
    loss = function(leaf, y)
    return loss.detach(), *torch.autograd.grad(loss, leaf)


def refuse_unequal(
    name: str, ours: tuple[Tensor, ...], peer: tuple[Tensor, ...], within: float = 1e-6
) -> None:
    """Nothing is timed that is not the same, up to a part of the greatest number."""
    for what, one, other in zip(("loss", "gradient"), ours, peer, strict=True):
        worst, allowed = float((one - other).abs().max()), within * float(other.abs().max())
        if not worst <= allowed or allowed == 0:  # so put, NaN is refused too
            raise AssertionError(
                f"{name}: expected the peer's {what} within {allowed:.1e}, got {worst:.1e} off; "
                "not timed"
            )


def timed(
    x: Tensor,
    y: Tensor,
    ours: Loss,
    others: Mapping[str, Loss],
    rounds: int,
    most_seconds: float,
) -> dict[str, Any]:
    """Medians of interleaved rounds; the others sit out what is left once the slowest of them took
    so long."""
    turns = Turns(x, y, with_gradient=True)
    turns.baselines = dict(others)
    turns.warm_up(ours)
    for _ in range(rounds):
        spent = (sum(turns.times.get(name, {}).get("step", [])) for name in others)
        if max(spent, default=0) < most_seconds:
            turns.others()
        turns.run("ours", ours)
    return turns.summary()
