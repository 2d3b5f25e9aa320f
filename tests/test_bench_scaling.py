"""The benchmarks of memories and processes compare equals, and their tables say what was found."""

import json
import re
import shutil
import sys

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("matplotlib")
pytest.importorskip("pytorch_metric_learning")
pytest.importorskip("ms_kernels._cpu")

import bench.__main__ as command  # noqa: E402
from bench import cross_batch, keep, processes, scaling_report, tables  # noqa: E402
from bench.baselines import PEER  # noqa: E402
from bench.cases import make_batch  # noqa: E402

MACHINE = dict(threads=2, cores=2, cpu="Test CPU", instruction_set="avx2", torch="2")
MACHINE |= dict(pytorch_metric_learning="9", date="2030-01-01", commit="abc")
SHAPE = {"d": 128, "per_class": 8}


def of_memory(size, batch):
    peer = {"step": 5e-2, "ratio": 25.0, "ratio_low": 20.0, "ratio_high": 30.0}
    times = {"ours": {"step": 2e-3}, PEER: peer}
    peaks = {"ours": 3 << 20, PEER: None if size == 4096 else 90 << 20}
    return {"size": size, "batch": batch, "kept": 0.05, "times": times, "bytes": peaks}


def of_processes(world, n, kinds):
    sent = [{"call": "gather_into", "given": 64, "received": 64 * (world - 1)}] * 2
    times = dict(step=world * 1e-2, low=5e-3, high=9e-2, work=world * 2e-2)
    sent = {"forward": sent, "backward": sent[:1]}
    case = {"world": world, "n": n, "schedule": "gather", "kinds": kinds}
    return {**case, "bytes": 1 << 20, **sent, **times}


MEMORY = [of_memory(size, batch) for size in (4096, 16384) for batch in (64, 256)]
PROCESSES = [
    of_processes(*case)
    for case in ((1, 4096, ["strong"]), (4, 4096, ["strong", "weak"]), (1, 1024, ["weak"]))
]
FOUND = {
    "memory": {"machine": MACHINE, "shape": SHAPE, "memory": MEMORY},
    "distributed": {"machine": MACHINE, "shape": SHAPE, "distributed": PROCESSES},
}


@pytest.mark.parametrize("batch", [64, 256])
def test_equal_memories_are_timed(batch):
    cross_batch.check(512, batch)


@pytest.mark.parametrize(
    ("what", "flawed"),
    [
        ("loss", lambda found: found * (1 + 1e-5)),
        ("loss", lambda found: found * float("nan")),
        ("gradient", lambda found: found.detach() + 2 * (found - found.detach())),
    ],
    ids=["loss", "nan", "gradient"],
)
def test_unequal_memories_are_not_timed(what, flawed, monkeypatch):
    def make(size, dtype):
        memory = cross_batch.make_peer(size, dtype)
        memory.register_forward_hook(lambda module, given, found: flawed(found))
        return memory

    monkeypatch.setitem(cross_batch.MAKERS, PEER, make)
    wanted = f"memory of 512, batch of 64: expected the peer's {what} .*; not timed"
    with pytest.raises(AssertionError, match=wanted):
        cross_batch.check(512, 64)


def test_both_memories_hold_the_same_rows_of_new_samples():
    memories = cross_batch.full(("ours", PEER), 512)
    assert len(memories["ours"]) == 512 and memories[PEER].has_been_filled
    rows, labels, _ = memories["ours"].ring.candidates()
    torch.testing.assert_close(rows, memories[PEER].embedding_memory)
    assert torch.equal(labels, memories[PEER].label_memory)
    assert torch.bincount(labels).eq(2 * cross_batch.PER_CLASS).all()
    x, y = next(cross_batch.stream(512, 64, 2))
    similarity, same = x @ rows.T, y[:, None] == labels
    assert similarity.max() < 0.99  # no sample comes twice
    assert similarity[same].mean() > 0.2 > similarity[~same].mean()


def test_a_memory_is_measured_with_its_peer(monkeypatch):
    monkeypatch.setattr(cross_batch, "peak", lambda *case: 3 << 20)
    monkeypatch.setattr(cross_batch, "ROUNDS", {512: 3})
    (row,) = cross_batch.measure((512,), (64,))
    assert set(row["times"]) == set(row["bytes"]) == {"ours", PEER}
    assert row["times"][PEER]["rounds"] == 3 and 0 < row["kept"] < 1


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="known on Linux only")
def test_the_peak_of_a_step_is_that_of_a_process():
    assert cross_batch.peak("ours", 512, 64) >= 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "expected a candidate, the size of a memory .* got nothing; `python -m bench memory`"),
        ("theirs 64 64", "candidate: expected one of ours, metric_learning, got theirs"),
        ("ours none 64", "size: expected a whole number, at least 64, got none"),
        ("ours 64 1", "batch: expected a whole number, at least 8, got 1"),
    ],
)
def test_what_is_no_peak(arguments, said):
    with pytest.raises(SystemExit, match=f"^bench.cross_batch: {said}"):
        cross_batch.parse(arguments.split())


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
def test_two_processes_are_measured_and_their_bytes_counted():
    """Of 64 rows each: sizes, rows, labels and ids, a word, numbers and counts of statistics, a
    word; in a ring sizes, two rounds, the loss, a round with statistics and worth, and a word after
    each round."""
    rows, codes = 64 * 128 * 4, 64 * 16
    gather = [72, rows, codes, 4, 64 * 20, codes, 4]
    ring = [72, rows + codes, 4, rows + codes, 4, 8, rows + codes + 64 * 24 + codes, 4]
    for row, want in zip(processes.measure((2,), 128, 64, 1, 1), (gather, ring), strict=True):
        assert row["kinds"] == ["strong", "weak"] and row["step"] > 0 and row["work"] > 0
        assert [one["given"] for one in row["forward"]] == want
        assert [one["received"] for one in row["forward"]] == want and row["backward"] == []


def test_what_is_not_the_loss_of_one_process_is_not_reported():
    x, y, _ = make_batch(128, 128, "mid")
    leaf = x.clone().requires_grad_()
    loss = processes.ms_kernels.MultiSimilarityLoss()(leaf, y)
    loss.backward()
    halves = [{"loss": loss.detach(), "dx": part} for part in leaf.grad.chunk(2)]
    processes.check(x, y, halves)
    for name in ("loss", "dx"):
        wrong = [halves[0], {**halves[1], name: halves[1][name] * (1 + 1e-4)}]
        with pytest.raises(AssertionError, match="2 processes: expected the .*; not reported"):
            processes.check(x, y, wrong)


def test_a_case_that_is_strong_and_weak_is_measured_once():
    assert processes.cases((1, 2, 4), 4096, 1024) == [
        (1, 4096, "gather"),
        (2, 4096, "gather"),
        (2, 4096, "ring"),
        (4, 4096, "gather"),
        (4, 4096, "ring"),
        (1, 1024, "gather"),
        (2, 2048, "gather"),
        (2, 2048, "ring"),
    ]


def test_tables_have_times_ratios_bytes_and_who_shares_cores():
    found = json.loads(json.dumps(FOUND))
    text = scaling_report.memory_table(found["memory"])
    assert "2 threads of Test CPU (avx2), torch 2, pytorch-metric-learning 9, 2030-01-01" in text
    row = "| 4,096 | 64 | 5.0% | 2.0 ms | 50.0 ms | 25.0x | 20.0 to 30.0 | 3.0 MiB |  |"
    assert row in text and "| 3.0 MiB | 90.0 MiB |" in text
    found["memory"]["machine"] |= {"wait_policy": "passive", "load": 3.5}
    text = scaling_report.memory_table(found["memory"])
    assert "2 threads that wait passively of Test CPU (avx2), busy with other jobs" in text
    text = scaling_report.distributed_table(found["distributed"])
    row = "| 4* | gather | 4,096 | 1,024 | 40.0 ms | 5.0 to 90.0 ms | 80.0 ms | 4.00x | 192 B |"
    assert f"| strong {row} 576 B |" in text and f"| weak {row} 576 B |" in text
    assert text.index("| weak | 1 |  |") < text.index("| weak | 4* |")
    assert "the 2 cores of Test CPU" in text and "4 processes" not in text
    assert "\\* More processes than the 2 cores: they share them." in text


@pytest.mark.parametrize("names", [["memory"], ["distributed"], ["memory", "distributed"]], ids=str)
def test_the_page_is_filled_and_drawn_of_what_was_measured(names, tmp_path):
    (tmp_path / "docs").mkdir()
    results = tmp_path / "bench" / "results"
    results.mkdir(parents=True)
    for part in ("README.md", "docs/scaling.md"):
        shutil.copy(tables.ROOT / part, tmp_path / part)
    for name in names:
        (results / f"{name}-2030-01-01.json").write_text(json.dumps(FOUND[name]))
    before = (tmp_path / "docs" / "scaling.md").read_text()
    tables.publish(tmp_path)
    text = (tmp_path / "docs" / "scaling.md").read_text()
    for name in ("memory", "distributed"):
        between = re.compile(f"<!-- {name}:start -->\n(.*)<!-- {name}:end -->", re.S)
        filled = scaling_report.TABLES[name](FOUND[name]) + "\n"
        old, new = (between.search(one)[1] for one in (before, text))
        assert new == (filled if name in names else old)
    picture = (tmp_path / "docs" / "bench_scaling.png").read_bytes()
    assert picture.startswith(b"\x89PNG")


@pytest.mark.parametrize("quick", [True, False])
def test_quick_results_are_not_published(quick, tmp_path, monkeypatch, capsys):
    published = []
    monkeypatch.setattr(tables, "publish", lambda: published.append(True))
    monkeypatch.setattr(keep, "RESULTS", tmp_path / "results")
    keep.keep("memory", MACHINE, quick, lambda: {"memory": MEMORY}, lambda found: "the table")
    (path,) = keep.RESULTS.iterdir()
    assert json.loads(path.read_text())["memory"] == json.loads(json.dumps(MEMORY))
    assert "the table" in capsys.readouterr().out
    assert bool(published) != quick
    assert (tables.newest(keep.RESULTS, *tables.SCALING["memory"]) is None) == quick


@pytest.mark.parametrize("kind", [None, "family", "tasks", "memory", "distributed"])
@pytest.mark.parametrize("quick", [True, False])
def test_words_of_the_command(kind, quick):
    words = [word for word in (kind, "quick" if quick else None) if word]
    assert command.parse(words) == (kind, quick) == command.parse(words[::-1])


@pytest.mark.parametrize("words", ["fast", "memory family", "memory 4096"])
def test_unknown_words_are_refused(words):
    wanted = "bench: expected nothing or one of 'family', 'tasks', 'memory', 'distributed', 'com"
    with pytest.raises(SystemExit, match=f"^{wanted}.*, got '{words}'"):
        command.parse(words.split())
