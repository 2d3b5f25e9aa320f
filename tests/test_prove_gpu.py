"""`make gpu` says what is missing, and runs what it should."""

import subprocess
import sys
from pathlib import Path

import prove_gpu
import pytest
import torch


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so():
    command = [sys.executable, Path(prove_gpu.__file__)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "CUDA device" in done.stdout


def test_a_python_without_torch_is_named(monkeypatch):
    monkeypatch.setattr(prove_gpu, "importable", lambda name: name != "torch")
    assert "cannot import torch" in prove_gpu.unfit() and "PYTHON=" in prove_gpu.unfit()


def test_steps(monkeypatch):
    monkeypatch.setattr(prove_gpu, "sanitizer", lambda: "/bin/compute-sanitizer")
    commands = {name: " ".join(map(str, command)) for name, command, _ in prove_gpu.steps(True)}
    watched = ["memcheck", "racecheck", "synccheck", "initcheck"]
    assert [*commands][-7:] == [*watched, "bench", "small", "family"]
    assert set(commands) <= set(prove_gpu.STEPS)
    assert commands["bench"].endswith("bench.gpu quick")
    assert commands["small"].endswith("bench.gpu small")
    for _, command, _ in prove_gpu.steps(False):
        for part in command:
            if part.startswith("tests/"):
                assert (prove_gpu.ROOT / part).exists(), part


def test_steps_can_be_named(monkeypatch, capsys):
    monkeypatch.setattr(prove_gpu, "unfit", lambda: None)
    monkeypatch.setattr(prove_gpu, "can_build", lambda: False)
    monkeypatch.setattr(sys, "argv", ["prove_gpu", "info"])
    assert prove_gpu.main() == 0
    assert "passed       info" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["prove_gpu", "speed"])
    assert prove_gpu.main() == 2 and "got speed" in capsys.readouterr().out


def test_figures_are_read_from_the_report(tmp_path, monkeypatch):
    report = tmp_path / "gpu.xml"
    report.write_text(
        '<a><testcase name="t"><properties><property name="launches" value="9"/>'
        "</properties></testcase></a>"
    )
    monkeypatch.setattr(prove_gpu, "REPORT", report)
    assert prove_gpu.figures() == "t: launches 9"


def test_no_sanitizer_is_no_failure(monkeypatch, capsys):
    monkeypatch.setattr(prove_gpu, "sanitizer", lambda: None)
    assert [name for name, _, _ in prove_gpu.steps(False)][-3:] == ["bench", "small", "family"]
    assert "left out" in capsys.readouterr().out


def test_missing_extras_leave_out_their_tests(monkeypatch):
    monkeypatch.setattr(prove_gpu, "importable", lambda name: name != "hypothesis")
    monkeypatch.setattr(prove_gpu, "sanitizer", lambda: None)
    command = next(c for name, c, _ in prove_gpu.steps(False) if name == "suite")
    assert "--ignore=tests/test_properties.py" in command


def test_what_the_sanitizer_watches_runs():
    pytest.importorskip("triton")
    import sanitize_kernels

    device = "cuda" if torch.cuda.is_available() else "cpu"
    sanitize_kernels.run(37, 20, 33, torch.bfloat16, device, "triton")
