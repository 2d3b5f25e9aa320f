"""Peak memory of a training step in fresh processes: bounded, and linear in N."""

import sys

import pytest
import torch

import ms_kernels
from ms_kernels import NoMining, NTXent
from ms_kernels.backends import cpu
from ms_kernels.backends.interface import Side
from ms_kernels.rules.spec import PairSpec
from ms_kernels.tools import step_cost

MIB = 2**20


def peak(backend, n, d, *budget):
    return step_cost.measure(backend, n, d, 0, *budget)["peak_bytes"]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc"),
    pytest.mark.skipif("cpu" not in ms_kernels.backends.dispatch.built(), reason="not built"),
]


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # each thread needs about one MiB


@pytest.mark.parametrize("d", [128, 512])
def test_less_than_64_mib_at_8192(d):
    assert peak("cpu", 8192, d) < 64 * MIB


def formula(n, d, budget=40 * MIB, cell=12, statistics=93):
    """README's, in bytes, for two threads; a cell holds the partial sums of a row."""
    vector = {"avx512": 16, "avx2": 8}.get(cpu.module().instruction_set(), 4)
    row = 4 * (-(-d // vector) * vector + 16) + statistics
    tiles = -(-n // 192)
    super_blocks = -(-tiles // -(-tiles // 32))
    partial_sums = 5 * MIB + cell * super_blocks * n + 12 * tiles * (tiles + 1) // 2
    return n * row + max(budget, partial_sums) + 2 * (768 * d + 0.45 * MIB)


def test_it_is_what_the_readme_says():
    d = 32
    for n in (8192, 11000):
        assert peak("cpu", n, d) == pytest.approx(formula(n, d), abs=1.5 * MIB)


@pytest.mark.parametrize("rule", [None, NTXent()], ids=str)
@pytest.mark.parametrize("budget", [0, 40 * MIB])
@pytest.mark.parametrize(("n", "d"), [(8192, 2), (100_000, 2), (100_000, 128), (1_000_000, 128)])
def test_the_plan_is_what_the_readme_says(n, d, budget, rule):
    """Of the workspace: not the loss, the number of kept pairs, and the table of labels."""
    spec = PairSpec() if rule is None else PairSpec(rule, NoMining())
    # Nobody touches these zeros: the system gives no memory for them.
    call = cpu.Call("loss_and_gradient", Side(torch.zeros(n, d), torch.arange(n), None), None, spec)
    call.native.write_gradients(1, 0)
    planned = call.native.plan(2, budget)
    told = formula(n, d, budget, 12 if rule is None else 16, statistics=77)
    # A wave of tiles holds up to 5 MiB.
    assert told - 6 * MIB < planned < told * 1.01 + MIB


def test_budget_is_kept():
    """Without a stash the workspace is the copy, one wave of tiles, and a few tiles a thread."""
    assert peak("cpu", 8192, 128, 0) < 24 * MIB


def test_dense_reference_grows_as_n_squared():
    """The measurement can tell the difference."""
    assert peak("reference", 2048, 32) > 8 * peak("reference", 512, 32)
