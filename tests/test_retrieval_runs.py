"""The trainer of examples/retrieval end to end: resumed, stopped, and in two processes."""

import dataclasses
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

from retrieval_program import LAUNCHER, MODULE, ROOT, SMALL, equal, run, tiny_roots  # noqa: E402

from examples.retrieval import __main__ as program  # noqa: E402
from examples.retrieval import checkpoint, train  # noqa: E402
from examples.retrieval.dry_run import dry_options, make_tiny  # noqa: E402
from examples.retrieval.evaluate import embed_all  # noqa: E402
from examples.retrieval.images import MARGIN, for_test, to_tensor  # noqa: E402
from examples.retrieval.layouts import LAYOUTS  # noqa: E402
from examples.retrieval.model import Embedder  # noqa: E402
from examples.retrieval.options import Options  # noqa: E402
from examples.retrieval.processes import Processes  # noqa: E402

needs_gloo = pytest.mark.skipif(
    not (dist.is_available() and dist.is_gloo_available()), reason="torch without gloo"
)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_roots(tmp_path_factory)


def test_a_dry_run_trains_and_evaluates_in_every_layout(monkeypatch, capsys):
    assert run(monkeypatch, "train", "--dry-run") == 0
    shown = capsys.readouterr().out
    for name in LAYOUTS:
        assert f"{name} after 4 steps" in shown
    rows = re.findall(r"^\| (\d+\.\d) \| (\d+\.\d) \| (\d+\.\d) \| (\d+\.\d) \|$", shown, re.M)
    assert len(rows) == 4 and all(float(first) <= float(second) for first, second, *_ in rows)
    assert shown.count("Percent of 12 queries.") == 3 and "Percent of 3 queries." in shown
    assert shown.count("neighbours.png") == 4


def test_a_dry_run_takes_what_is_given_and_refuses_what_it_cannot(monkeypatch, capsys):
    """An option that is given is used, also one that equals the default of a training."""
    seen = []
    monkeypatch.setattr(program, "train", lambda options, *_, **__: seen.append(options))
    more = ["--batch-norm", "train", "--amp", "--steps", "3000", "--lr", "0.5", "--no-pretrained"]
    more += ["--test-batch", "3", "--ks", "2", "--seed", "4", "--loss-option", "beta=40"]
    assert run(monkeypatch, "train", "--dry-run", "--dataset", "sop", *more) == 0
    assert run(monkeypatch, "train", "--dry-run", "--dataset", "sop") == 0
    given, usual = seen
    found = {f.name: getattr(given, f.name) for f in dataclasses.fields(given)}
    changed = {name for name, value in found.items() if value != getattr(usual, name)}
    found = {name: found[name] for name in changed - {"root", "output"}}
    assert found == {
        "batch_norm": "train", "amp": True, "steps": 3000, "lr": 0.5, "pretrained": False,
        "test_batch": 3, "ks": (2,), "seed": 4, "loss_options": {"beta": 40},
    }  # fmt: skip
    assert (usual.steps, usual.pretrained, usual.test_batch) == (4, True, 128)
    for wrong in (["--root", "x"], ["--output", "x"], ["--resume"]):
        assert run(monkeypatch, "train", "--dry-run", *wrong) == program.REFUSED
        assert f"{wrong[0]}: expected none with --dry-run" in capsys.readouterr().err


def test_a_run_that_goes_on_is_the_run_that_never_stopped(tmp_path, capsys):
    given = {
        "memory": 20,
        "memory_warmup": 1,
        "backbone": "retrieval_program:with_dropout",
        "evaluate_every": 0,
    }
    for folder in ("whole", "parts"):
        make_tiny("cub", tmp_path / folder)
    whole = dry_options("cub", tmp_path / "whole", steps=7, **given)
    train.train(whole, Processes("cpu"), resume=False)
    folder = tmp_path / "parts"
    for steps, resume in ((3, False), (5, True), (7, True)):
        part = dry_options("cub", folder, steps=steps, **given)
        torch.manual_seed(steps)  # whatever happened meanwhile
        train.train(part, Processes("cpu"), resume=resume)
    states = [checkpoint.load(Path(o.output) / checkpoint.NAME) for o in (whole, part)]
    for name in ("model", "optimizer", "criterion", "chance", "step"):
        assert equal(states[0][name], states[1][name]), name
    assert states[0]["criterion"]["loss.ring.filled"] == 20
    found = [json.loads((Path(o.output) / "results.json").read_text()) for o in (whole, part)]
    assert found[0]["scores"] == found[1]["scores"]
    assert found[0]["losses"][-1] == found[1]["losses"][-1]


def test_ctrl_c_saves_and_the_run_goes_on(tmp_path, tiny, monkeypatch, capsys):
    common = ["--dataset", "sop", "--root", str(tiny["sop"]), "--ks", "1", *SMALL]
    command = [sys.executable, *MODULE, "train", *common, "--steps", "100000"]
    folder = tmp_path / "stopped"
    process = subprocess.Popen(
        [*command, "--save-every", "5", "--output", folder],
        cwd=ROOT,
        # As many threads as here: of another number torch's sums have other bits.
        env={**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())},
        stderr=subprocess.PIPE,
        text=True,
    )
    path = folder / checkpoint.NAME
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    told = process.communicate(timeout=60)[1]
    assert process.returncode == program.STOPPED, told
    step = checkpoint.load(path)["step"]
    assert f"stopped at step {step}, saved in {path}; --resume goes on from there" in told
    more = [*common, "--steps", step + 2]
    assert run(monkeypatch, "train", *more, "--output", folder, "--resume") == 0
    assert run(monkeypatch, "train", *more, "--output", tmp_path / "whole") == 0
    states = [checkpoint.load(f / checkpoint.NAME) for f in (folder, tmp_path / "whole")]
    assert states[0]["step"] == step + 2
    assert equal(states[0]["model"], states[1]["model"])
    assert equal(states[0]["optimizer"], states[1]["optimizer"])


@needs_gloo
def test_a_dry_run_of_two_processes(tmp_path):
    """They meet once for all layouts, and read the images that the first has made."""
    made = ["--dry-run", "--device", "cpu"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [*LAUNCHER, *MODULE, "train", *made], cwd=ROOT, env=environment, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Warning: `" not in done.stderr
    for name in LAYOUTS:
        assert done.stdout.count(f"{name} after 4 steps") == 1
    assert not list(tmp_path.glob("retrieval-*"))


@needs_gloo
def test_two_processes_train_as_one(tmp_path, tiny, monkeypatch, capsys):
    """With a memory: the loss of the batch and that of the memory, added up."""
    given = ["train", "--dataset", "inshop", "--root", str(tiny["inshop"]), *SMALL]
    given += ["--steps", "6", "--memory", "15", "--ks", "1,2", "--test-batch", "4"]
    assert run(monkeypatch, *given, "--output", tmp_path / "one") == 0
    command = [*LAUNCHER, *MODULE, *given, "--output", str(tmp_path / "two")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    one, two = (checkpoint.load(tmp_path / f / checkpoint.NAME) for f in ("one", "two"))
    assert (len(one["chance"]), len(two["chance"])) == (1, 2)
    assert one["losses"][-1] == pytest.approx(two["losses"][-1], abs=1e-5)
    for name, value in one["model"].items():
        torch.testing.assert_close(two["model"][name], value, rtol=1e-3, atol=1e-4, msg=name)
    for name in ("labels", "ids", "filled", "position"):
        key = f"loss.ring.{name}"
        assert torch.equal(one["criterion"][key], two["criterion"][key]), name
    scores = [json.loads((tmp_path / f / "results.json").read_text()) for f in ("one", "two")]
    assert scores[0]["queries"] == scores[1]["queries"] == 3
    assert scores[0]["scores"] == pytest.approx(scores[1]["scores"])
    capsys.readouterr()
    assert run(monkeypatch, *given, "--output", tmp_path / "two", "--resume") == program.REFUSED
    assert "processes: the checkpoint has 2, there are 1" in capsys.readouterr().err


def test_evaluate_finds_what_training_found(tmp_path, tiny, monkeypatch, capsys):
    given = ["--dataset", "cub", "--root", tiny["cub"], *SMALL, "--steps", "2"]
    assert run(monkeypatch, "train", *given, "--output", tmp_path, "--ks", "1,2") == 0
    first = json.loads((tmp_path / "results.json").read_text())
    assert run(monkeypatch, "evaluate", "--output", tmp_path, "--ks", "1,2") == 0
    found = json.loads((tmp_path / "evaluation.json").read_text())
    assert found["scores"] == first["scores"] and found["seconds_a_step"] is None
    assert json.loads((tmp_path / "results.json").read_text()) == first
    assert not list(tmp_path.glob("*.part"))


class Part(Processes):
    """One of several processes, whose rows are not added up."""

    def __init__(self, rank, world):
        super().__init__("cpu")
        self.rank, self.world = rank, world

    def any(self, flag):
        return flag

    def summed(self, x):
        return x


def test_processes_embed_each_row_once(tiny):
    options = Options("inshop", dim=4, size=16, test_batch=2)
    found = LAYOUTS["inshop"](tiny["inshop"])
    torch.manual_seed(0)
    model = Embedder(torch.nn.Flatten(), 3 * 16 * 16, 4, True)
    whole = embed_all(model, found, options, Processes("cpu"))
    parts = [embed_all(model, found, options, Part(rank, 2)) for rank in range(2)]
    for name in ("query", "gallery"):
        one, other = (getattr(part, name) for part in parts)
        assert not (one * other).any() and one.any() and other.any()
        assert torch.equal(one + other, getattr(whole, name))
    assert (len(whole.query), len(whole.gallery)) == (3, 9)
    torch.testing.assert_close(whole.query[:1], model(decoded(found.query, model)))


def decoded(images, model):
    """The first test image."""
    return to_tensor(for_test(images.read(0), 16, MARGIN), model.normalisation)[None]


def test_a_step_has_its_options_and_its_ids(tmp_path, tiny, monkeypatch):
    options = dry_options("cub", tmp_path, weight_decay=0.25, lr=0.125, classes=3)
    made = train.Run(options, LAYOUTS["cub"](tiny["cub"]), Processes("cpu"))
    (group,) = made.optimizer.param_groups
    assert (group["weight_decay"], group["lr"]) == (0.25, 0.125)
    assert len(group["params"]) == len(list(made.model.parameters()))
    seen = {}
    real = made.criterion.forward

    def noted(embeddings, labels, **given):
        seen.update(given, labels=labels)
        return real(embeddings, labels, **given)

    monkeypatch.setattr(made.criterion, "forward", noted)
    batch = made.sampler.batch(0)
    made._train_step(made.model, next(iter(made._batches())))
    assert seen["ids"].tolist() == [index for index, _ in batch.items]
    assert seen["labels"].tolist() == batch.labels


def test_rows_do_not_depend_on_the_number_of_workers(tiny):
    options = Options("cub", dim=4, size=16, test_batch=5)
    found = LAYOUTS["cub"](tiny["cub"])
    torch.manual_seed(0)
    model = Embedder(torch.nn.Flatten(), 3 * 16 * 16, 4, True)
    processes = Processes("cpu")
    alone = embed_all(model, found, options, processes)

    helped = embed_all(model, found, dataclasses.replace(options, workers=1), processes)
    assert torch.equal(alone.query, helped.query) and len(alone.query) == 12
