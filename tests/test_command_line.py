"""A command refuses what it cannot do before any work: what it got, and what it wanted."""

import importlib
import json
import os
import runpy
import sys
from pathlib import Path

import pytest

import ms_kernels
from ms_kernels import __main__ as command
from ms_kernels.tools import command_line, step_cost

ROOT = Path(__file__).parent.parent


def work(*_):
    raise AssertionError("there was work before the check")


@pytest.mark.parametrize("name", ["demo", "explain"])
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps: expected a whole number, at least 1, got 0"),
        (["--steps", 5000 * "9"], "--steps: .* and at most [0-9]{19}, got 9{40}$"),
        (["--steps", "many"], "--steps: expected a whole number, at least 1, got many"),
        (["--steps", "-3"], "--steps: expected a whole number, at least 1, got -3"),
        (["--output", "{}/none/a.png"], "--output: expected a file in a folder that exists, got"),
        (["--output", "{}"], "--output: expected a picture, such as .*png or .*svg, got"),
        (["--output", "{}/a.txt"], "--output: expected a picture, such as .*png or .*svg, got"),
        (["--output", "{}/a.pgf"], "--output: expected a picture, such as .*png or .*svg, got"),
        (["--output", "{}/folder.png"], "a file that can be written, got .*: Is a directory"),
        (["--output", "{}/" + 300 * "a" + ".png"], "that can be written.*: File name too long"),
        (["--output", "/proc/a.png"], "that can be written, got '/proc/a.png': .*another place"),
    ],
)
def test_what_cannot_be_drawn(name, arguments, said, monkeypatch, tmp_path):
    for needed in ("sklearn", "matplotlib", "tqdm"):
        pytest.importorskip(needed)
    module = importlib.import_module(f"ms_kernels.tools.{name}")
    monkeypatch.setattr(module, "train", work)
    monkeypatch.setattr("sklearn.datasets.load_digits", work)
    (tmp_path / "folder.png").mkdir()
    given = [text.format(tmp_path) for text in arguments]
    monkeypatch.setattr(sys, "argv", ["ms_kernels", name, *given])
    with pytest.raises(SystemExit, match=f"^{name}: .*{said}"):
        command.main()
    assert [path.name for path in tmp_path.iterdir()] == ["folder.png"]


def test_a_place_that_is_tried_stays_as_it_was(tmp_path):
    old, new = tmp_path / "old.png", tmp_path / "new.png"
    old.write_text("kept")
    for path in (old, new):
        command_line.check_output("demo", "--output", path)
    assert old.read_text() == "kept" and not new.exists()
    link = tmp_path / "link.png"
    link.symlink_to(new)
    command_line.check_output("demo", "--output", link)
    assert link.is_symlink() and not new.exists()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_what_is_no_file_is_refused_without_waiting(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    for path in (tmp_path / "pipe.png", "a\0.png"):
        with pytest.raises(SystemExit, match="demo: --output: expected a file"):
            command_line.check_output("demo", "--output", path)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("", "expected a backend, N, D .* got nothing; for example: python -m"),
        ("cpu 10", "expected a backend, N, D .* got cpu 10; for"),
        ("cpu 10 4 1 0 9", "got cpu 10 4 1 0 9"),
        ("cpu ten 4", "N: expected a whole number, at least 1, got ten"),
        ("cpu 10 0", "D: expected a whole number, at least 1, got 0"),
        ("cpu 10 4 -1", "timed steps: expected a whole number, at least 0, got -1"),
        ("cpu 10 4 1 1.5", "workspace_bytes: expected a whole number, at least 0, got 1.5"),
        (f"panels 10 4 1 {2**70}", f"workspace_bytes: .* and at most {2**62}, got {2**70}"),
        (f"panels {10**4000} 4", f"N: expected .* at most {2**62}, got 1{39 * '0'}$"),
        ("gpu 10 4", "backend: expected one of 'auto'.*, got 'gpu'"),
        ("cuda 10 4", "backend: 'cuda' expected tensors on cuda, got cpu"),
    ],
)
def test_step_cost(arguments, said):
    with pytest.raises(SystemExit, match=f"^step_cost: .*{said}"):
        step_cost.parse(arguments.split())


def test_step_cost_takes_what_fits():
    assert step_cost.parse(["panels", "10", "4"]) == ("panels", 10, 4, 5)
    assert step_cost.parse(["auto", "10", "4", "0", "7"]) == ("auto", 10, 4, 0)
    assert ms_kernels.options.workspace_bytes == 7


@pytest.mark.parametrize("where", ["file/ms_kernels/tiles.json", "folder"])
def test_tune_tries_its_file_first(where, monkeypatch, tmp_path):
    pytest.importorskip("triton")
    from ms_kernels.tools import tune

    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr(tune, "interpreted", lambda: False)
    monkeypatch.setattr(tune.backend, "missing", lambda: None)
    monkeypatch.setattr(tune.torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(tune.torch.cuda, "get_device_name", lambda _: "a GPU")
    monkeypatch.setattr(tune, "tuned_file", lambda _: tmp_path / where)
    monkeypatch.setattr(tune, "tiles_of", work)
    with pytest.raises(SystemExit, match="^tune: .*XDG_CACHE_HOME"):
        tune.run(show=False)


@pytest.mark.parametrize("option", ["--seeds", "--steps"])
def test_the_ablation(option, monkeypatch, capsys):
    pytest.importorskip("sklearn")
    monkeypatch.setattr("sklearn.datasets.load_digits", work)
    monkeypatch.setattr(sys, "argv", ["ablation_digits.py", option, "0"])
    with pytest.raises(SystemExit):
        runpy.run_path(str(ROOT / "examples" / "ablation_digits.py"), run_name="__main__")
    assert f"{option}: expected at least 1, got 0" in capsys.readouterr().err


def test_tables_name_the_file_that_will_not_do(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    from bench import tables

    other, broken = tmp_path / "other.json", tmp_path / "broken.json"
    other.write_text(json.dumps({"machine": {}, "family": []}))
    broken.write_text("{")
    assert tables.load(other, "family")["family"] == []
    for given, said in ((broken, "broken.json .* got no JSON"), (other, "another kind of file")):
        with pytest.raises(SystemExit, match=f"^bench.tables: .*(?=.*'times').*{said}"):
            tables.load(given, "times")
    monkeypatch.setattr(sys, "argv", ["tables", "a.json"])
    with pytest.raises(SystemExit, match="expected nothing.*got a.json"):
        runpy.run_path(str(ROOT / "bench" / "tables.py"), run_name="__main__")


@pytest.mark.parametrize(
    ("module", "arguments", "said"),
    [
        ("memory", "", "expected a candidate, N and D, got nothing"),
        ("memory", "theirs 10 4", "candidate: expected one of ours, .*, got theirs"),
        ("memory", "ours 10 none", "D: expected a whole number, at least 1, got none"),
        (
            "family",
            "",
            "expected a loss, a candidate and N.* got nothing; `python -m bench",
        ),
        ("family", "Huber ours 64", "loss: expected one of MultiSimilarity, .*, got Huber"),
        ("family", "BinLifted metric_learning 64", "candidate: expected one of ours, got metric"),
        ("family", "NCA ours 1", "N: expected a whole number, at least 4, got 1"),
    ],
)
def test_peaks_of_the_bench(module, arguments, said, monkeypatch):
    for needed in ("matplotlib", "tqdm"):
        pytest.importorskip(needed)
    monkeypatch.setattr(sys, "argv", ["bench", *arguments.split()])
    monkeypatch.delitem(sys.modules, f"bench.{module}", raising=False)  # run, not imported
    with pytest.raises(SystemExit, match=f"^bench.{module}: .*{said}"):
        runpy.run_module(f"bench.{module}", run_name="__main__")
