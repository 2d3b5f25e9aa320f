"""Time of a training step and of the loss alone. `python -m bench` runs this file."""

import os

import pytest

from bench.baselines import ours
from bench.cases import QUICK_SHAPES, REGIMES, SHAPES, make_batch
from bench.check import check, comparable
from bench.timing import Turns, rounds_for

CHOSEN = QUICK_SHAPES if os.environ.get("MSK_BENCH") == "quick" else SHAPES


@pytest.mark.parametrize("kind", ["step", "forward"])
@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("shape", CHOSEN, ids=lambda s: f"N{s[0]}_D{s[1]}")
def test_time(benchmark, shape, regime, kind):
    n, d = shape
    batch = make_batch(n, d, regime)
    turns = Turns(batch.x, batch.y, with_gradient=kind == "step")
    turns.baselines = {k: f for k, f in turns.baselines.items() if comparable(k, batch)}
    if kind == "step":
        check(batch, {"ours": ours, **turns.baselines})
    turns.warm_up(ours)
    benchmark.pedantic(turns.run, args=("ours", ours), setup=turns.others, rounds=rounds_for(n))
    benchmark.extra_info.update(
        n=n, d=d, regime=regime, kind=kind, kept=batch.kept, candidates=turns.summary()
    )
