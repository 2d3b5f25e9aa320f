"""Peak memory of a training step in fresh processes: bounded, and linear in N."""

import sys

import pytest

import ms_kernels
from ms_kernels import step_cost

MIB = 2**20


def peak(backend, n, d, *budget):
    return step_cost.measure(backend, n, d, 0, *budget)["peak_bytes"]


pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="peaks are read from /proc"),
    pytest.mark.skipif("cpu" not in ms_kernels.dispatch.built(), reason="not built"),
]


@pytest.fixture(autouse=True)
def two_threads(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # each thread needs about one MiB


@pytest.mark.parametrize("d", [128, 512])
def test_less_than_64_mib_at_8192(d):
    assert peak("cpu", 8192, d) < 64 * MIB


def test_growth_is_linear():
    """The budget is a constant; beyond it a row costs a copy of itself and its statistics."""
    d = 32
    peaks = {n: peak("cpu", n, d) for n in (8192, 12288, 16384)}
    first, second = peaks[12288] - peaks[8192], peaks[16384] - peaks[12288]
    most_per_row = 4 * (d + 32) + 1024  # the copy, and cells, statistics and order
    assert first < 4096 * most_per_row
    assert second < 4096 * most_per_row


def test_budget_is_kept():
    """Without a stash the workspace is the copy, one wave of tiles, and a few tiles a thread."""
    assert peak("cpu", 8192, 128, 0) < 24 * MIB


def test_dense_reference_grows_as_n_squared():
    """The measurement can tell the difference."""
    assert peak("reference", 2048, 32) > 8 * peak("reference", 512, 32)
