"""How runs of examples/retrieval end early: stopped, or failed, in one process or in two."""

import os
import signal
import subprocess

import pytest
import torch.distributed as dist

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

from retrieval_program import (  # noqa: E402
    LAUNCHER,
    MODULE,
    ROOT,
    SMALL,
    Signalled,
    program,
    run,
    spoil,
    tiny_roots,
)

from examples.retrieval import checkpoint  # noqa: E402
from examples.retrieval.dry_run import dry_options, make_tiny  # noqa: E402
from examples.retrieval.layouts import LAYOUTS  # noqa: E402
from examples.retrieval.processes import Processes  # noqa: E402
from examples.retrieval.refusal import Refusal  # noqa: E402
from examples.retrieval.stopping import Stopped  # noqa: E402
from examples.retrieval.train import Run, benchmark_of, train  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_roots(tmp_path_factory)


def test_workers_leave_signals_to_their_process(tmp_path, tiny, capsys):
    found = LAYOUTS["cub"](tiny["cub"])
    found = found._replace(train=Signalled(found.train), query=Signalled(found.query))
    options = dry_options("cub", tmp_path, workers=1, steps=2)
    made = Run(options, found, Processes("cpu"))
    (tmp_path / "cub-run").mkdir()
    made.train()
    assert made.step == 2 and made.scores[-1]["step"] == 2


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_loader_that_fails_by_a_stop_loses_nothing(tmp_path, monkeypatch, number, capsys):
    make_tiny("cub", tmp_path)
    options = dry_options("cub", tmp_path, steps=9, save_every=0, evaluate_every=0)
    batches = Run._batches

    def stopped(self):
        for count, x in enumerate(batches(self)):
            if count == 3:
                os.kill(os.getpid(), number)
                raise RuntimeError("DataLoader worker (pid 7) is killed by signal")
            yield x

    monkeypatch.setattr(Run, "_batches", stopped)
    with pytest.raises(Stopped, match="stopped at step 3, saved in"):
        train(options, Processes("cpu"), resume=False)
    assert checkpoint.load(tmp_path / "cub-run" / checkpoint.NAME)["step"] == 3


def test_a_loader_that_fails_is_no_stop(tmp_path, monkeypatch):
    make_tiny("cub", tmp_path)

    def fails(self):
        raise RuntimeError("DataLoader worker (pid 7) exited unexpectedly")
        yield

    monkeypatch.setattr(Run, "_batches", fails)
    with pytest.raises(RuntimeError, match="exited unexpectedly"):
        train(dry_options("cub", tmp_path), Processes("cpu"), resume=False)
    assert checkpoint.load(tmp_path / "cub-run" / checkpoint.NAME)["step"] == 0


def test_scores_that_a_stop_leaves_out_are_made_by_the_run_that_goes_on(tmp_path, monkeypatch):
    make_tiny("cub", tmp_path)
    options = dry_options("cub", tmp_path, steps=6, evaluate_every=2, save_every=0)
    step = Run._train_step

    def stopped(self, model, x):
        if self.step == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, model, x)

    monkeypatch.setattr(Run, "_train_step", stopped)
    with pytest.raises(Stopped, match="stopped at step 4"):
        train(options, Processes("cpu"), resume=False)
    monkeypatch.setattr(Run, "_train_step", step)
    kept = checkpoint.load(tmp_path / "cub-run" / checkpoint.NAME)["scores"]
    assert [row["step"] for row in kept] == [2]
    found = train(options, Processes("cpu"), resume=True)["scores_during_training"]
    make_tiny("cub", tmp_path / "whole")
    whole = dry_options("cub", tmp_path / "whole", steps=6, evaluate_every=2, save_every=0)
    assert found == train(whole, Processes("cpu"), resume=False)["scores_during_training"]
    assert [row["step"] for row in found] == [2, 4, 6]


def test_a_broken_test_image_saves_what_was_trained(tmp_path, monkeypatch, capsys):
    make_tiny("cub", tmp_path)
    options = dry_options("cub", tmp_path, steps=6, evaluate_every=3, save_every=0)
    broken = benchmark_of(options).query.name(2)
    with open(broken, "wb") as file:
        file.write(b"none")
    with pytest.raises(Refusal, match="cannot be decoded .*; saved in .* after step 3$"):
        train(options, Processes("cpu"), resume=False)
    assert checkpoint.load(tmp_path / "cub-run" / checkpoint.NAME)["step"] == 3


def test_ctrl_c_in_evaluate_is_no_traceback(monkeypatch, capsys):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(program, "evaluate", interrupted)
    assert run(monkeypatch, "evaluate", "--output", "x", "--device", "cpu") == program.STOPPED
    assert "retrieval evaluate: interrupted" in capsys.readouterr().err


@pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)
def test_a_broken_image_of_one_process_ends_both_after_the_same_step(tmp_path, monkeypatch):
    """And what was done is saved by both."""
    spoil(tmp_path, "sop")
    broken = sorted((tmp_path / "Stanford_Online_Products").rglob("1_*.JPG"))[0]
    broken.write_bytes(broken.read_bytes()[:300])
    given = ["train", "--dataset", "sop", "--root", str(tmp_path), *SMALL, "--steps", "40"]
    given += ["--save-every", "0", "--output", str(tmp_path / "run"), "--ks", "1"]
    done = subprocess.run(
        [*LAUNCHER, *MODULE, *given], cwd=ROOT, timeout=120, capture_output=True, text=True
    )
    assert done.returncode != 0
    state = checkpoint.load(tmp_path / "run" / checkpoint.NAME)
    assert f"{broken}: expected an image" in done.stderr
    assert f"{checkpoint.NAME} after step {state['step']}" in done.stderr
    assert len(state["chance"]) == 2
