"""The benchmark of the drop-in compares equals that do not fall back, and its table says what was
measured."""

import json

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("ms_kernels._cpu")

from bench import compat, compat_report  # noqa: E402
from bench.baselines import PEER  # noqa: E402


@pytest.mark.parametrize("name", compat.SETUPS)
def test_equals_are_timed(name):
    compat.check(name)


def test_what_falls_back_is_not_timed(monkeypatch):
    def script(losses, miners):
        return losses.TripletMarginLoss(swap=True)

    monkeypatch.setitem(compat.SETUPS, "swap", compat.SetUp(script))
    with pytest.raises(UserWarning, match="swap=True"):
        compat.check("swap")


def test_unequal_losses_are_not_timed(monkeypatch):
    def script(losses, miners):
        ours = "ms_kernels" in losses.__name__
        return losses.SupConLoss(temperature=0.1 if ours else 0.2)

    monkeypatch.setitem(compat.SETUPS, "other", compat.SetUp(script))
    with pytest.raises(AssertionError, match=r"other: expected the peer's loss .*; not timed"):
        compat.check("other")


def test_a_case_is_measured_with_its_peer(monkeypatch):
    monkeypatch.setattr(compat, "rounds_for", lambda n: 2)
    monkeypatch.setattr(compat, "printed", lambda *given: given[1:3] and 3 << 20)
    one = {"SupConLoss": compat.SETUPS["SupConLoss"]}
    monkeypatch.setattr(compat, "SETUPS", one)
    (row,) = compat.measure(quick=True)
    assert (row["set_up"], row["n"], row["d"]) == ("SupConLoss", 256, 128)
    assert set(row["times"]) == set(row["bytes"]) == {"ours", PEER}


def test_peak_of_a_step(capsys):
    if torch.cuda.is_available():
        pytest.skip("it is of a CPU")
    compat.print_peak(*compat.parse(["SupConLoss", "ours", "64", "16"]))
    assert json.loads(capsys.readouterr().out) >= 0
    with pytest.raises(SystemExit, match="bench.compat: expected a set-up of .*, got nothing"):
        compat.parse([])


def test_table_has_times_ratios_and_memory():
    machine = dict(threads=2, cpu="Test CPU", torch="2", date="2030-01-01", commit="abc")
    machine["pytorch_metric_learning"] = "9"
    times = {"ours": {"step": 2e-3, "ratio": 1.0}, PEER: {"step": 5e-3, "ratio": 2.5}}
    row = {"set_up": "NTXentLoss", "n": 512, "d": 128, "times": times}
    row["bytes"] = {"ours": 3 << 20, PEER: None}
    text = compat_report.table({"machine": machine, "compat": [row]})
    assert "2 threads of Test CPU, torch 2, pytorch-metric-learning 9, 2030-01-01" in text
    assert "| NTXentLoss | 512 | 128 | 2.00 ms | 5.0 ms | 2.5x | 3.0 MiB |  |" in text
