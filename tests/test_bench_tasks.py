"""The benchmark of place recognition, CLIP and SigLIP compares equals, and its table says what was
measured."""

import json

import pytest
import torch

pytest.importorskip("matplotlib")
pytest.importorskip("pytorch_metric_learning")
pytest.importorskip("ms_kernels._cpu")

from bench import family_report, tasks, tasks_report  # noqa: E402
from bench.baselines import PEER  # noqa: E402

TINY = {task: tasks.Case(task, 32, 16) for task in tasks.OURS}


@pytest.fixture
def eager(monkeypatch):
    """Compiling takes longer than all the rest."""
    monkeypatch.setattr(tasks, "compiled", lambda task: tasks.DENSE[task])


@pytest.mark.parametrize("task", tasks.OURS)
def test_equals_are_timed(task, eager):
    tasks.check(task)


@pytest.mark.slow
def test_the_compiled_step_is_the_dense_one():
    tasks.check("SigLIP")


def scaled(factor):
    """Of ours another loss, by which the gradient is other too."""

    def flawed(*given):
        loss, logged = tasks.our_clip(*given)
        return loss * factor, logged

    return flawed


def half_learned(x, y, log_scale, bias):
    """The gradient of what learns is lost in part, the loss is not."""
    return tasks.our_clip(x, y, (log_scale + log_scale.detach()) / 2, bias)


def logs_other(*given):
    loss, logged = tasks.our_clip(*given)
    return loss, logged + 1


@pytest.mark.parametrize(
    ("flawed", "message"),
    [
        (scaled(1 + 1e-5), "CLIP, dense: expected the peer's loss .*; not timed"),
        (half_learned, "CLIP, dense: expected the peer's gradient .*; not timed"),
        (logs_other, "CLIP, dense: expected 2.3.* to be logged, got 3.3.*; not timed"),
    ],
)
def test_unequal_steps_are_not_timed(flawed, message, eager, monkeypatch):
    monkeypatch.setitem(tasks.OURS, "CLIP", flawed)
    with pytest.raises(AssertionError, match=message):
        tasks.check("CLIP")


def test_the_share_that_mining_keeps_is_one_of_some():
    """Else it would say nothing of mining."""
    x, y = tasks.make_batch(tasks.CHECKED, "late")
    shares = {}
    for name in ("ours", "dense", PEER):
        step = tasks.candidates(tasks.PLACES)[name]()
        step(x, y)
        shares[name] = step.logged
    assert 0 < shares["ours"] < 1 and len(set(shares.values())) == 1


def test_deep_rows_keep_the_cosines_of_shallow_ones():
    """And with them what is mined."""
    shallow, deep = (tasks.make_batch(tasks.Case(tasks.PLACES, 64, d))[0] for d in (128, 512))
    cosine = torch.nn.functional.cosine_similarity
    got, want = (cosine(x[:, None], x[None], dim=2) for x in (deep, shallow))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-6)
    assert deep.shape == (64, 512)


@pytest.mark.parametrize("task", tasks.OURS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_batches(task, dtype):
    x, y = tasks.make_batch(tasks.Case(task, 32, 64, dtype))
    places = task == tasks.PLACES
    assert x.shape == (32 if places else 64, 64) and x.dtype == getattr(torch, dtype)
    if not places:
        assert 0.6 < (x[:32] * x[32:]).float().sum(1).mean() < 0.8
    for name in ("ours", "dense"):
        tasks.candidates(task)[name]()(x.to(getattr(torch, dtype)).requires_grad_(), y).backward()


def test_every_shape_is_asked_for():
    asked = {(case.n, case.d, case.dtype) for case in tasks.CASES if case.task == tasks.PLACES}
    assert {(240, 4096, "float16"), (512, 16384, "float32")} <= asked
    assert {case.task for case in tasks.QUICK} == set(tasks.OURS)


def test_cases_are_measured_beside_all_others(eager, monkeypatch):
    monkeypatch.setattr(tasks, "rounds_for", lambda n: 2)
    monkeypatch.setattr(tasks, "printed", lambda *given: [3 << 20, 0.1])
    found = tasks.measure((*TINY.values(),))
    assert [row["task"] for row in found] == list(TINY)
    for row in found:
        names = {"ours", "dense", "compiled", *([PEER] if row["task"] == tasks.PLACES else [])}
        assert set(row["times"]) == set(row["bytes"]) == names
        assert all(times["rounds"] == 2 for times in row["times"].values())


def test_a_slow_step_is_taken_once(eager, monkeypatch):
    """And by nobody else: it takes no turn, not even to warm up."""
    monkeypatch.setattr(tasks, "rounds_for", lambda n: 2)
    case = TINY["CLIP"]
    seconds = {"ours": 0.1, "dense": 2 * tasks.SLOW, "compiled": 0.1}

    def dense(*given):
        raise AssertionError("taken again")

    monkeypatch.setitem(tasks.DENSE, "CLIP", dense)
    monkeypatch.setattr(tasks, "compiled", lambda task: tasks.our_clip)
    monkeypatch.setattr(tasks, "check", lambda task: None)
    monkeypatch.setattr(tasks, "printed", lambda module, name, *given: [3 << 20, seconds[name]])
    (row,) = tasks.measure((case,))
    times = row["times"]
    assert list(row["bytes"]) == list(seconds) and set(times) == set(seconds)
    assert times["dense"]["step"] == 2 * tasks.SLOW and times["dense"]["rounds"] == 1
    assert times["dense"]["ratio"] == pytest.approx(2 * tasks.SLOW / times["ours"]["step"])
    assert times["compiled"]["rounds"] == times["ours"]["rounds"] == 2
    assert tasks_report.ratio(times["dense"]).endswith("x (once)")
    assert tasks_report.ratio(times["compiled"]).endswith("x")


@pytest.mark.parametrize("known", [True, False])
def test_cost_of_a_step(known, capsys, monkeypatch):
    if not known:
        monkeypatch.setattr(tasks, "peak_of", lambda step, x: None)
    tasks.print_cost(*tasks.parse(["ours", "SigLIP", "64", "16", "float16"]))
    cost = tasks.Cost(*json.loads(capsys.readouterr().out))
    assert 0 < cost.seconds < tasks.SLOW and (cost.bytes is not None) == known


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ([], "bench.tasks: expected a candidate, a task, N, D and a dtype, .*, got nothing"),
        (["ours", "BYOL", "64", "8", "float32"], "task: expected one of place .*, got BYOL"),
        (["ours", "CLIP", "64", "8", "int8"], "dtype: expected one of .*, got int8"),
        ([PEER, "CLIP", "64", "8", "float32"], "candidate: expected one of ours, dense, compiled"),
        (["ours", "CLIP", "x", "8", "float32"], "bench.tasks: N: expected"),
    ],
)
def test_what_cannot_be_measured(given, message):
    with pytest.raises(SystemExit, match=message):
        tasks.parse(given)


def test_table_and_page_have_times_ratios_and_memory():
    machine = dict(threads=2, cpu="Test CPU", torch="2", date="2030-01-01", commit="abc")
    machine["pytorch_metric_learning"] = "9"
    times = {"ours": {"step": 2e-3, "ratio": 1.0}, "dense": {"step": 5e-3, "ratio": 2.5}}
    times["compiled"] = {"step": 4e-3, "ratio": 2.0}
    row = {**TINY["CLIP"]._asdict(), "times": times}
    row["bytes"] = {"ours": 3 << 20, "dense": 6 << 20, "compiled": None}
    found = {"machine": machine, "tasks": [row]}
    text = tasks_report.table(json.loads(json.dumps(found)))
    assert "2 threads of Test CPU, torch 2, pytorch-metric-learning 9, 2030-01-01" in text
    assert (
        "| CLIP | float32 | 32 | 16 | 2.0 ms | 2.5x | 2.0x |  | 3.0 MiB | 6.0 MiB |  |  |" in text
    )
    machine["load"] = 3.5
    assert "Test CPU, busy with other jobs (load 3.5 when it began), torch" in tasks_report.table(
        found
    )
    del machine["load"]
    head, rule = text.splitlines()[2:4]
    assert head.count("|") == rule.count("|") == text.splitlines()[4].count("|")
    shape = {"d": 128, "per_class": 4}
    family = {"machine": machine, "shape": shape, "family": []}
    assert text in family_report.page(family, found)
    assert tasks_report.NOT_YET in family_report.page(family, None)
