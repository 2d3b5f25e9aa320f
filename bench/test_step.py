"""Time of a training step and of the loss alone. `python -m bench` runs this file."""

import os

import pytest
import torch

from bench.baselines import BASELINES, ours
from bench.cases import QUICK_SHAPES, REGIMES, SHAPES, Batch, make_batch
from bench.timing import Turns, rounds_for
from ms_kernels import reference

CHOSEN = QUICK_SHAPES if os.environ.get("MSK_BENCH") == "quick" else SHAPES


def check(batch: Batch) -> None:
    """Refuses to time a wrong result: losses and gradients against float64."""
    exact = batch.x.double().requires_grad_()
    want = reference.multi_similarity_loss(exact, batch.y)
    want.backward()
    kept = int(reference.row_statistics(exact, batch.y).neg_kept.sum())
    scale = exact.grad.abs().max().clamp(min=1e-9)
    for name, function in {"ours": ours, **BASELINES}.items():
        if name == "row_loop" and len(batch.x) > 512:
            continue  # checked on the smaller shapes
        if name == "metric_learning" and (len(batch.x) > 4096 or kept <= 1):
            continue  # it takes a batch with a single mined pair for one without any
        x = batch.x.clone().requires_grad_()
        loss = function(x, batch.y)
        loss.backward()
        torch.testing.assert_close(loss.double(), want, rtol=1e-4, atol=1e-6, msg=name)
        # A pair at the threshold may flip in float32: its weight is small against the largest.
        assert float((x.grad - exact.grad).abs().max() / scale) < 1e-2, name


@pytest.mark.parametrize("kind", ["step", "forward"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", CHOSEN, ids=lambda s: f"N{s[0]}_D{s[1]}")
def test_time(benchmark, shape, regime, kind):
    n, d = shape
    batch = make_batch(n, d, regime)
    if kind == "step":
        check(batch)
    turns = Turns(batch.x, batch.y, with_gradient=kind == "step")
    turns.warm_up(ours)
    benchmark.pedantic(turns.run, args=("ours", ours), setup=turns.others, rounds=rounds_for(n))
    benchmark.extra_info.update(
        n=n, d=d, regime=regime, kind=kind, kept=batch.kept, candidates=turns.summary()
    )
