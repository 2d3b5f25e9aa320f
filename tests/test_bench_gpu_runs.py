"""The GPU bench as a process: results are kept as they are found, and it goes on."""

import pytest
import torch

import ms_kernels
from bench import gpu, gpu_device, gpu_huge, gpu_latency, gpu_report
from bench.gpu_cases import make_batch
from bench.gpu_record import Record, append, latest, read
from bench.gpu_timing import Timer, step_of

pytestmark = pytest.mark.usefixtures("stand_in")
MACHINE = {name: "x" for name in ("gpu", "driver", "torch", "triton", "cuda", "sources")}


def test_results_are_added_whole_and_lines_cut_short_are_not_read(tmp_path):
    path = tmp_path / "r.jsonl"
    record = Record(path, MACHINE)
    record.add("step", (1, "a"), {"gpu": 1.0})
    with path.open("a") as file:
        file.write('{"kind": "step", "on": "')  # killed while it wrote
    record.add("step", (2, "a"), {"gpu": 2.0})
    assert [case["key"] for case in read(path)] == [[], [1, "a"], [2, "a"]]
    again = Record(path, MACHINE)
    assert again.has("step", (1, "a")) and not again.has("step", (3, "a"))
    assert not Record(path, {**MACHINE, "sources": "other"}).has("step", (1, "a"))
    append(path, {"kind": "step", "on": record.on, "key": [1, "a"], "gpu": 3.0})
    assert [c["gpu"] for c in latest(read(path)) if c["kind"] == "step"] == [3.0, 2.0]


def test_a_huge_step_is_written_before_it_is_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu.unfit", lambda: None)
    monkeypatch.setattr("bench.gpu.REHEARSED", True)
    steps = []

    def counted(function, x, y):
        run = step_of(function, x, y)
        return lambda: steps.append(1) or run()

    monkeypatch.setattr("bench.gpu_huge.step_of", counted)
    path = tmp_path / "r.jsonl"
    few = ["million", "--sizes", "64", "--depths", "16", "--results", str(path)]
    monkeypatch.setattr("bench.gpu_huge._rounds", lambda run, timer: 1 / 0)  # cut off there
    assert gpu.main(few) == 1 and len(steps) == 1
    cases = [case for case in read(path) if case["kind"] == "step"]
    assert [case["look"] for case in cases] == ["warm", "eager"] and "error" in cases[1]
    ours = cases[0]["candidates"]["ours"]
    assert ours["gpu"] > 0 and ours["peak_bytes"] > 0
    assert gpu_report.by_shape(cases)[0]["candidates"]["ours"] == ours
    rounds = {**cases[1], "candidates": {"ours": {"gpu": 7.0, "rounds": 3}}}
    (both,) = gpu_report.by_shape([cases[0], rounds])
    assert both["candidates"]["ours"] == {**ours, "gpu": 7.0, "rounds": 3}


def test_a_huge_step_is_repeated_few_times(stand_in):
    steps = []
    timer = Timer((2, 3), 0.0)
    found = gpu_huge._rounds(lambda: steps.append(1), timer)
    assert found["rounds"] == 3 and found["gpu_low"] <= found["gpu"] <= found["gpu_high"]
    assert len(steps) <= 5
    refused = gpu_huge.Checked(make_batch(40, 16, "float32", "mid"), "panels", "off by 1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_huge, "checked", lambda shape: refused)
        for look in gpu_huge.LOOKS:
            case = gpu_huge.run_huge(look, (40, 16, "float32", "mid"), timer)
            assert case["candidates"]["ours"] == {"why": "refused", "refusal": "off by 1"}


def test_nothing_stands_in_for_kernels_on_a_gpu(monkeypatch):
    monkeypatch.setattr(
        ms_kernels.backends.dispatch, "built", lambda device=None: frozenset({"cpu"})
    )
    monkeypatch.setattr(gpu_device, "REHEARSED", True)
    assert gpu_device.backends() == ["panels"] and gpu_device.unfit() is None
    monkeypatch.setattr(gpu_device, "REHEARSED", False)
    assert gpu_device.backends() == [] and gpu_device.no_device() is None
    assert "no kernels of ours for this GPU; cuda: " in gpu_device.unfit()


def test_a_bench_goes_on_where_it_was_cut_off(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("bench.gpu.unfit", lambda: None)
    monkeypatch.setattr("bench.gpu.REHEARSED", True)
    path = tmp_path / "r.jsonl"
    few = ["quick", "--sizes", "40", "--depths", "16", "--looks", "eager", "--results", str(path)]
    assert gpu.main([*few, "--dtypes", "bfloat16"]) == 0
    assert gpu.main([*few, "--dtypes", "bfloat16", "float32"]) == 0
    cases = [case for case in read(path) if case["kind"] == "step"]
    assert [case["dtype"] for case in cases] == ["bfloat16", "float32"]
    for case in cases:
        assert case["candidates"]["ours"]["gpu"] > 0 and case["floor"]["t3"] > 0
    shown = capsys.readouterr().out
    assert "| float32 | mid | panels | 40 | 16 |" in shown
    assert gpu.main([*few, "--dtypes", "float32", "--sizes", "24", "--seconds", "1e-9"]) == 0
    assert "1 cases were left for want of time" in capsys.readouterr().out


def test_a_broken_context_ends_the_process_and_the_next_measures_the_rest(
    tmp_path, monkeypatch, stand_in
):
    """The error once more, for it may have been another's; not a third time."""
    monkeypatch.setattr("bench.gpu_latency.unfit", lambda: None)
    monkeypatch.setattr("bench.gpu_latency.large_case", lambda *a: {"kernels": [], "of": 0})

    def small(backend, dtype, n, timer):
        if dtype == "bfloat16":
            monkeypatch.setattr(stand_in, "synchronize", lambda: 1 / 0)  # as after a stray write
            raise RuntimeError("an illegal memory access was encountered")
        return {"graph": 1e-6}

    monkeypatch.setattr("bench.gpu_latency.small_case", small)
    path = tmp_path / "r.jsonl"
    arguments = ["--small", "8", "--large", "9", "--results", str(path)]
    codes = []
    for _ in range(3):
        monkeypatch.setattr(stand_in, "synchronize", lambda: None)  # a new process
        codes.append(gpu_latency.main(arguments))
    assert codes == [gpu_device.BROKEN, gpu_device.BROKEN, 0]
    found = [case for case in read(path) if case["kind"] == "latency"]
    assert ["error" in case for case in found] == [True, True, False]


def test_a_case_that_breaks_is_written_and_the_others_go_on(tmp_path, monkeypatch):
    monkeypatch.setattr("bench.gpu_latency.unfit", lambda: None)
    monkeypatch.setattr("bench.gpu_latency.large_case", lambda *a: {"kernels": [], "of": 0})

    def small(backend, dtype, n, timer):
        if dtype == "bfloat16":
            raise RuntimeError("launch failed\nmore")
        return {"graph": 1e-6}

    monkeypatch.setattr("bench.gpu_latency.small_case", small)
    path = tmp_path / "r.jsonl"
    assert gpu_latency.main(["--small", "8", "--large", "9", "--results", str(path)]) == 1
    found = {tuple(case["key"]): case for case in read(path) if case["kind"] == "latency"}
    assert found["panels", "bfloat16", 8]["error"] == "RuntimeError: launch failed"
    assert found["panels", "float32", 8]["graph"] == 1e-6


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys, monkeypatch):
    monkeypatch.setattr("bench.gpu.unfit", lambda: "torch sees no CUDA device")
    assert gpu.main([]) == 2
    assert "CUDA device" in capsys.readouterr().out
