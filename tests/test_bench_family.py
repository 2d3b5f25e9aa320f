"""The benchmark of the family compares equals, and its table says what was measured."""

import json

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("pytorch_metric_learning")
pytest.importorskip("ms_kernels._cpu")

from bench import family, family_report  # noqa: E402
from bench.baselines import PEER  # noqa: E402
from ms_kernels.rules.spec import WEIGHTINGS


@pytest.mark.parametrize("name", family.members())
def test_equals_are_timed(name):
    family.check(name)


def test_every_rule_is_measured():
    rules = {rule.__name__ for rule in WEIGHTINGS} | {"Histogram"}
    assert set(family.members()) == rules


@pytest.mark.parametrize(
    ("what", "flawed"),
    [
        ("loss", lambda loss: lambda x, y: loss(x, y) * (1 + 1e-5)),
        ("loss", lambda loss: lambda x, y: loss(x, y) * float("nan")),
        ("gradient", lambda loss: lambda x, y: loss(x.detach(), y) + 0 * x.sum()),
    ],
    ids=["loss", "nan", "no_gradient"],
)
def test_unequal_losses_are_not_timed(what, flawed, monkeypatch):
    member = family.members()["SupCon"]
    flawed_member = member._replace(peer=flawed(member.ours))
    monkeypatch.setattr(family, "members", lambda: {"SupCon": flawed_member})
    with pytest.raises(AssertionError, match=f"SupCon: expected the peer's {what} .*; not timed"):
        family.check("SupCon")


def test_batches_have_whole_classes_of_near_rows():
    x, y = family.make_batch(128)
    assert x.shape == (128, family.DEPTH) and torch.bincount(y).eq(family.PER_CLASS).all()
    similarity = x @ x.T
    assert 0.4 < similarity[(y[:, None] == y).fill_diagonal_(False)].mean() < 0.6


def test_a_case_is_measured_with_its_peer_or_says_why_not(monkeypatch):
    monkeypatch.setattr(family, "rounds_for", lambda n: 2)
    monkeypatch.setattr(family, "peak", lambda name, candidate, n: 3 << 20)
    chosen = ("Contrastive", "BinLifted", "NTXent")
    members = {name: family.members()[name] for name in chosen}
    members["NTXent"] = members["NTXent"]._replace(most=32)
    monkeypatch.setattr(family, "members", lambda: members)
    with_peer, without, too_large = family.measure((64,))
    assert set(with_peer["times"]) == set(with_peer["bytes"]) == {"ours", PEER}
    assert set(without["times"]) == set(too_large["bytes"]) == {"ours"}
    assert without["left_out"] == "it has none" and too_large["left_out"] == family.TOO_LARGE


def test_table_has_times_ratios_memory_and_what_is_left_out():
    def row(member, n, left_out="", **peer):
        times = {"ours": {"step": 2e-3, "ratio": 1.0}}
        if peer:
            times[PEER] = {"step": 5e-3, "ratio": 2.5}
        peaks = {"ours": 3 << 20, **({PEER: None} if peer else {})}
        return {"member": member, "n": n, "left_out": left_out, "times": times, "bytes": peaks}

    machine = dict(threads=2, cpu="Test CPU", torch="2", date="2030-01-01", commit="abc")
    machine["pytorch_metric_learning"] = "9"
    shape = {"d": 128, "per_class": 4}
    rows = [row("NCA", 512, peer=True), row("NTXent", 8192, "too large")]
    text = family_report.table(
        json.loads(json.dumps({"machine": machine, "shape": shape, "family": rows}))
    )
    assert "2 threads of Test CPU, torch 2, pytorch-metric-learning 9, 2030-01-01" in text
    assert "| NCA | 512 | 2.0 ms | 5.0 ms | 2.5x | 3.0 MiB |  |" in text
    assert "| NTXent | 8192 | 2.0 ms | too large |  | 3.0 MiB |  |" in text
