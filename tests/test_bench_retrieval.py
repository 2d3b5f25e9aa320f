"""The ablation and its cost: each member is trained as it is named, each table says what is."""

import json

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("PIL")
pytest.importorskip("ms_kernels._cpu")
pytest.importorskip("pytorch_metric_learning")

from bench import retrieval, retrieval_report, walk  # noqa: E402
from bench.baselines import PEER  # noqa: E402
from examples.retrieval.criterion import criterion_of  # noqa: E402
from examples.retrieval.dry_run import TINY  # noqa: E402
from examples.retrieval.layouts import LAYOUTS  # noqa: E402

MACHINE = dict(threads=1, cpu="Test CPU", instruction_set="avx2", load=0.5, torch="2")
MACHINE |= dict(date="2030-01-01", commit="abc", pytorch_metric_learning="9")


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A benchmark of three classes, and runs that fit it."""
    real = retrieval.options_of

    def fitting(folder, steps, seed, **rule):
        return real(folder, steps, seed, **{**rule, "classes": 3, "images": 3})

    monkeypatch.setattr(retrieval, "options_of", fitting)
    TINY["cub"](tmp_path)
    return LAYOUTS["cub"](tmp_path)


def test_every_member_has_a_rule_and_a_letter():
    assert [*retrieval_report.FOLLOWS] == [retrieval_report.UNTRAINED, *retrieval.RULES]


def test_equal_weights_weigh_every_mined_pair_alike():
    rule = retrieval.RULES["MS mining alone"]
    criterion = criterion_of(retrieval.options_of("", 1, 0, **rule)).loss
    torch.manual_seed(0)
    x = torch.nn.functional.normalize(torch.randn(20, 4))
    from ms_kernels import pair_weights

    found = pair_weights(criterion, x, torch.arange(20) // 4)
    kept = found.positive | found.negative
    assert kept.any() and not kept.all()
    for row, mask in zip(found.weight, found.positive, strict=True):
        assert len(set(row[mask].tolist())) <= 1
    for row, mask in zip(found.weight, found.negative, strict=True):
        assert len(set(row[mask].tolist())) <= 1


def test_a_seed_trains_every_member(tiny):
    found = retrieval.ablation(tiny, seeds=2, steps=1)
    assert [row["member"] for row in found] == 2 * [*retrieval_report.FOLLOWS]
    assert all(0 <= row["recall_at_1"] <= 1 and row["queries"] == 12 for row in found)
    untrained = [row for row in found if row["member"] == retrieval_report.UNTRAINED]
    assert [row["seconds_a_step"] for row in untrained] == [None, None]
    made = {"machine": MACHINE, "retrieval": found, "seeds": 2, "steps": 1, "costs": []}
    made["images"] = dict(train=12, test=12, train_classes=3, test_classes=3)
    text = retrieval_report.ablation_table(made)
    assert "mean ± standard deviation of 2 seeds, 1 steps" in text
    assert text.count("\n| ") == 1 + len(retrieval_report.FOLLOWS)


def test_steps_take_turns_and_agree(tiny):
    found = retrieval.steps_in_turn(tiny, 9, rounds=1)
    assert set(found["seconds"]) == {"ours", PEER}
    assert found["largest_difference"] < 1e-5


def test_peak_of_a_step(capsys):
    retrieval.print_peak("ours", 50)
    assert json.loads(capsys.readouterr().out) >= 0


def test_tables_and_picture(tmp_path):
    rows = [
        {"member": name, "seed": seed, "recall_at_1": 0.5 + seed / 10, "map_at_r": 0.25}
        for name in retrieval_report.FOLLOWS
        for seed in range(2)
    ]
    cost = {"n": 1000, "seconds": {"ours": 0.1, PEER: 0.2}, "ratio": 2.0}
    cost["bytes"] = {"ours": 3 << 20, PEER: 70 << 20}
    images = dict(train=1, test=2, train_classes=3, test_classes=4)
    found = {"machine": MACHINE, "retrieval": rows, "costs": [cost], "images": images}
    found |= {"seeds": 2, "steps": 3}
    text = retrieval_report.table(found)
    assert "| BinLifted | S+N | 55.0 ± 7.1 | 0.0 ± 0.0 | 25.0 ± 0.0 | 0.0 ± 0.0 |" in text
    assert "| 1,000 | 100.0 ms | 200.0 ms | 2.00x | 3.0 MiB | 70.0 MiB |" in text
    retrieval_report.plot(found, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    walked = {"scores": {"Recall@1": 90.0}, "losses": [[20, 0.9], [40, 0.4]], "queries": 5}
    walked |= {"step": 40, "seconds_a_step": 0.1}
    shown = walk.text({"machine": MACHINE, "walk": walked})
    assert "| 90.0 |" in shown and "from 0.90 at step 20 to 0.40" in shown
