"""Refuses to time a wrong result: losses and gradients by error budget, against float64."""

from collections.abc import Mapping

from torch import Tensor

import ms_kernels
from bench.baselines import Loss, dense
from bench.cases import Batch
from ms_kernels import reference

# Of the largest value: what float32 rounding may do to batches of bench/cases.py and depths from
# 128, however little the dense code happens to err on them. tests/rounding.py derives it.
ROUNDING = 1e-6


def comparable(name: str, batch: Batch) -> bool:
    """pytorch-metric-learning takes a batch with one mined pair of each kind for an empty one."""
    if name != "metric_learning":
        return True
    stats = ms_kernels.row_statistics(batch.x, batch.y)
    return max(int(stats.pos_kept.sum()), int(stats.neg_kept.sum())) != 1


def check(batch: Batch, candidates: Mapping[str, Loss]) -> None:
    """Each may err twice as much as the dense code in float32, and `ROUNDING` of the largest."""
    exact = _results(reference.multi_similarity_loss, batch.x.double(), batch.y)
    float32 = _results(dense, batch.x, batch.y)
    for name, function in candidates.items():
        found = _results(function, batch.x, batch.y)
        for what, got, same, want in zip(("loss", "gradient"), found, float32, exact, strict=True):
            worst = float((got.double() - want).abs().max())
            allowed = 2 * float((same.double() - want).abs().max())
            allowed += ROUNDING * float(want.abs().max().clamp(min=1e-9))
            if not worst <= allowed:  # so put, NaN is refused too
                raise AssertionError(
                    f"{name}: expected a {what} within {allowed:.1e} of float64, got {worst:.1e} "
                    "off; not timed"
                )


def _results(function: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.clone().requires_grad_()
    loss = function(leaf, y)
    loss.backward()
    assert leaf.grad is not None
    return loss.detach(), leaf.grad
