"""`make gpu` without a GPU: its plan, its time limits, what it reads and says is missing."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from gpu_proof import carry, ncu, process, proof, rehearsal, steps
from gpu_proof.site import Site
from gpu_proof.steps import Step

from bench import gpu_device
from bench.gpu_record import read

HERE = Path(__file__).parent
SCRIPT = [sys.executable, str(HERE / "prove_gpu.py")]


def python(code):
    return lambda site, limit: [sys.executable, "-c", code]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(tmp_path, monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    done = subprocess.run([*SCRIPT, "--results", tmp_path], capture_output=True, text=True)
    assert done.returncode == 2
    assert "sees no CUDA device" in done.stdout and "make gpu-rehearsal" in done.stdout


def test_a_python_without_torch_is_named(site, monkeypatch):
    monkeypatch.setattr(Site, "importable", lambda self, name: name != "torch")
    assert "cannot import torch" in site.unfit() and "PYTHON=" in site.unfit()


def test_the_interpreter_would_prove_nothing(site, monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert "TRITON_INTERPRET" in site.unfit()


def test_a_broken_torch_is_named(site):
    site.probe = {"error": "libcudart.so.13: cannot open shared object file"}
    assert "libcudart" in site.unfit()


def test_the_halves_of_the_plan_fit_a_machine_lent_for_minutes():
    """About nine for the first, which is the most valuable, and four for the second."""
    first = {step.name: step.seconds for step in steps.FIRST}
    names = ["build", "machine", "cuda", "training", "latency", "ncu", "bench", "triton"]
    assert list(first) == names
    assert list(first.values()) == [25, 15, 50, 40, 70, 50, 110, 160]
    second = {step.name: step.seconds for step in steps.SECOND}
    assert second == {"memcheck": 90, "racecheck": 60, "symmetry": 30, "million": 45}
    assert sum(first.values()) <= 540 and sum(second.values()) <= 240


def test_a_bench_is_told_when_to_stop_where_it_takes_that(site):
    by_name = {step.name: step.command(site, 60.0) for step in steps.FIRST}
    assert "--seconds" not in by_name["machine"]
    for name in ("latency", "ncu", "bench"):
        assert by_name[name][by_name[name].index("--seconds") + 1] == "52"


def test_steps_are_named_in_any_order():
    assert [s.name for s in steps.chosen(["latency", "machine"])] == ["machine", "latency"]
    assert steps.chosen([]) == [*steps.FIRST, *steps.SECOND]
    assert steps.chosen(["second", "full"]) == [*steps.SECOND, steps.MORE[-1]]
    done = subprocess.run([*SCRIPT, "speed"], capture_output=True, text=True)
    assert done.returncode == 2 and "got speed" in done.stdout and "racecheck" in done.stdout


def test_every_command_names_what_is_there(site):
    for step in (*steps.FIRST, *steps.SECOND, *steps.MORE):
        command = step.command(site, 60.0)
        for word in command:
            if word.startswith("tests/"):
                assert (HERE.parent / word).exists(), word
        module = command[command.index("-m") + 1]
        room = {"gpu_proof": HERE, "bench": HERE.parent}.get(module.split(".")[0])
        assert room is None or (room / f"{module.replace('.', '/')}.py").exists(), module


@pytest.mark.parametrize(
    ("name", "lacking", "said"),
    [
        ("ncu", "ncu", "ncu: neither on PATH"),
        ("memcheck", "compute-sanitizer", "compute-sanitizer: neither on PATH"),
        ("triton", "triton", "cannot import triton"),
        ("cuda", "pytest", "cannot import pytest"),
        ("build", "pybind11", "cannot import pybind11"),
        ("build", "nvcc", "nvcc: neither on PATH"),
    ],
)
def test_what_is_missing_is_named(site, monkeypatch, name, lacking, said):
    monkeypatch.setattr(Site, "tool", lambda self, tool: None if tool == lacking else tool)
    monkeypatch.setattr(Site, "importable", lambda self, package: package != lacking)
    monkeypatch.setattr(Site, "no_cuda_module", "none" if name == "build" else None)
    (step,) = steps.chosen([name])
    (outcome,) = proof.run(site, [step])
    assert outcome.state == proof.LEFT_OUT and said in outcome.detail
    assert not proof.failed([outcome])


def test_without_the_module_its_steps_are_left_out(site, monkeypatch, tmp_path):
    monkeypatch.setattr(Site, "no_cuda_module", carry.unusable("_cuda", tmp_path))
    for name in ("cuda", "racecheck"):
        (step,) = steps.chosen([name])
        assert "_cuda is not built" in step.why_not(site)


def test_a_step_whose_tests_are_all_skipped_fails(site):
    def writes(outcome):
        case = {"kind": "test", "on": "", "key": ["cuda", "test_it"], "outcome": outcome}
        code = f"import os; open(os.environ['MSK_PROOF_RESULTS'], 'a').write({json.dumps(case)!r})"
        return Step(outcome, "", 30, python(f"{code}; print()"), tests=True)

    outcomes = proof.run(site, [writes("skipped"), writes("passed"), writes("skipped")])
    assert [o.state for o in outcomes] == [proof.FAILED, proof.PASSED, proof.FAILED]
    assert outcomes[0].detail == "no test passed; 1 skipped"


def test_every_step_of_pytest_must_show_a_passed_test(site):
    for step in (*steps.FIRST, *steps.SECOND, *steps.MORE):
        assert step.tests == ("pytest" in step.command(site, 60.0)), step.name


def test_ncu_fails_where_it_profiled_nothing(tmp_path, monkeypatch, stand_in):
    monkeypatch.setattr(ncu, "backends", lambda: [])
    monkeypatch.setattr(ncu, "REHEARSED", False)
    assert ncu.main(["--results", str(tmp_path / "r.jsonl")]) == 1


def test_a_rehearsal_leaves_out_named_steps_only(site):
    def left_out(name):
        return proof.Outcome(name, proof.LEFT_OUT, "not here", 0.0)

    for name in ("build", "cuda", "triton", "launcher", "absent"):
        assert rehearsal.verdicts(site, [left_out(name)]) == []
    for name in ("machine", "latency", "ncu", "bench", "million", "family", "stand-ins", "again"):
        (wrong,) = rehearsal.verdicts(site, [left_out(name)])
        assert name in wrong and "not here" in wrong
    assert set(rehearsal.MAY_BE_LEFT_OUT) <= {step.name for step in rehearsal.steps([])}


def test_serial_tests_without_xdist(site, monkeypatch):
    assert "-n" in site.pytest(8)
    monkeypatch.setattr(Site, "importable", lambda self, name: name != "xdist")
    assert "-n" not in site.pytest(8)
    assert any("xdist" in remark for remark in site.remarks())


def test_a_step_that_hangs_is_killed_with_its_children(site):
    child = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    code = (
        f"import subprocess, sys, time; c = subprocess.Popen([sys.executable, '-c', {child!r}]);"
        "print('child', c.pid, flush=True); time.sleep(60)"
    )
    hang = Step("hang", "hangs", 2, python(code))
    after = Step("after", "runs all the same", 9, python("print('after')"))
    start = time.monotonic()
    outcomes = proof.run(site, [hang, after])
    assert time.monotonic() - start < 30
    assert [o.state for o in outcomes] == [proof.KILLED, proof.PASSED] and proof.failed(outcomes)
    log = site.log.read_text()
    assert "[killed after 2 s]" in log and "after" in log
    pid = log.split("child ")[-1].split()[0]
    status = Path(f"/proc/{pid}/status")
    assert not status.exists() or "zombie" in status.read_text()
    kept = [case["state"] for case in read(site.file) if case["kind"] == "outcome"]
    assert kept == ["KILLED", "passed"]


def test_a_child_left_behind_does_not_hold_the_step(site):
    code = "import subprocess; subprocess.Popen(['sleep', '60']); print('done')"
    (outcome,) = proof.run(site, [Step("leaves", "", 20, python(code))])
    assert outcome.state == proof.PASSED and outcome.seconds < 15


def test_what_was_found_before_the_end_is_counted(site):
    code = (
        "import os, sys; sys.path.insert(0, '.'); from pathlib import Path\n"
        "from bench.gpu_record import append\n"
        "file = Path(os.environ['MSK_PROOF_RESULTS'])\n"
        "for k in range(3): append(file, dict(kind='step', on='', key=[k]))\n"
        "append(file, dict(kind='step', on='', key=[9], error='no'))\n"
        "raise SystemExit(5)"
    )
    (outcome,) = proof.run(site, [Step("counts", "", 30, python(code))])
    assert outcome.state == proof.FAILED
    assert outcome.detail == "ended with 5; 4 step; see 9"


def test_a_step_whose_context_broke_goes_on_in_another_process(site):
    code = (
        "import pathlib, sys; p = pathlib.Path(sys.argv[1]); n = len(p.read_text()) if p.exists() "
        "else 0; p.write_text('x' * (n + 1)); sys.exit(75 if n < 2 else 0)"
    )
    count = site.results / "count"
    step = Step("breaks", "", 40, lambda site, _: [sys.executable, "-c", code, str(count)])
    (outcome,) = proof.run(site, [step])
    assert outcome.state == proof.PASSED and count.read_text() == "xxx"


def test_a_worker_whose_context_broke_is_replaced(tmp_path):
    pytest.importorskip("xdist")
    (tmp_path / "test_it.py").write_text(
        "from bench.gpu_device import device\n"
        "broken = []\n"
        "def test_1(): device().cuda.synchronize = lambda: 1 / 0; broken.append(1); assert False\n"
        "def test_2(): assert not broken\n"
    )
    file, log = tmp_path / "r.jsonl", tmp_path / "log"
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "MSK_PROOF_STEP": "cuda"}
    environment |= {"MSK_PROOF_RESULTS": str(file), "MSK_REHEARSAL": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_proof.outcomes", "-n", "1"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_it.py"]
    process.run(command, 120.0, log, tmp_path, environment)
    found = [(c["key"][1].split("::")[-1], c["outcome"]) for c in read(file)]
    assert ("test_1", "failed") in found and ("test_2", "passed") in found, log.read_text()


def test_unused_seconds_go_to_later_steps(site, monkeypatch):
    limits = []
    monkeypatch.setattr(
        proof.process,
        "run",
        lambda c, limit, *a: limits.append(limit) or process.Ended(0, False, 0),
    )
    left_out = Step("b", "", 20, python(""), lambda site: "no")
    proof.run(site, [Step("a", "", 10, python("")), left_out, Step("c", "", 5, python(""))])
    assert limits[0] == pytest.approx(10, abs=1) and limits[1] == pytest.approx(35, abs=1)


@pytest.mark.parametrize("few", ["", "N1_"])
def test_choices_of_tests_can_be_joined(site, monkeypatch, few):
    monkeypatch.setattr(Site, "few_tests", few)
    for name, chosen in (("symmetry", ""), ("cuda", "(cuda)")):
        (step,) = steps.chosen([name])
        command = step.command(site, 9.0)
        words = command[command.index("-k") + 1] if "-k" in command else ""
        assert words == " and ".join(filter(None, [chosen, few and f"({few})"]))


def test_both_name_a_broken_context_alike():
    assert proof.BROKEN == gpu_device.BROKEN


def test_a_rehearsal_has_every_step():
    planned = {step.name for step in (*steps.FIRST, *steps.SECOND)}
    assert planned <= {step.name for step in rehearsal.steps([])}


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_short_rehearsal(tmp_path):
    """`make gpu-rehearsal` has all steps."""
    names = ["stand-ins", "machine", "ncu", "hang", "break", "absent"]
    command = [*SCRIPT, "--rehearse", "--results", tmp_path, *names]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:]
    cases = read(tmp_path / "results.jsonl")
    states = {c["step"]: c["state"] for c in cases if c["kind"] == "outcome"}
    assert states == {
        **{"stand-ins": "passed", "machine": "passed", "ncu": "passed"},
        **{"hang": "KILLED", "break": "FAILED", "absent": "left out"},
    }
    kinds = {case["kind"] for case in cases}
    assert {"machine", "software", "ceiling", "ncu"} <= kinds
    # What they ran on is known from the step that looks at the machine.
    (machine,) = {case["on"] for case in cases if case["kind"] == "machine"}
    later = [c["on"] for c in cases if c["kind"] == "outcome" and c["step"] != "stand-ins"]
    assert machine and set(later) == {machine}
