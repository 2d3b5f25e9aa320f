"""The GPU bench without a GPU: its arithmetic, its memory rule, what it refuses, what it writes."""

from pathlib import Path

import pytest
import torch

import ms_kernels
from bench import gpu, gpu_floor, gpu_latency, gpu_native, gpu_report
from bench.gpu_capture import capture, no_wait, why_not_captured
from bench.gpu_cases import Batch, Judge, candidates, check_rows, cuda_by, make_batch, ours_with
from bench.gpu_record import Record
from bench.gpu_timing import Timer, extra, take_turns

pytestmark = pytest.mark.usefixtures("stand_in")


def test_floor_is_one_to_three_half_products_and_two_passes():
    rate = gpu_floor.rate_of("NVIDIA H200")
    floor = gpu_floor.floor_of(16384, 512, "bfloat16", rate)
    assert floor.t1 == pytest.approx(174e-6, rel=0.01) and floor.t3 == 3 * floor.t1
    assert floor.bytes == pytest.approx(8e-6, rel=0.05)
    assert gpu_floor.floor_of(16384, 512, "float32", rate).bytes == 2 * floor.bytes


def test_rates_are_known_or_given():
    assert gpu_floor.rate_of("NVIDIA H200").bfloat16 == 790e12
    assert gpu_floor.rate_of("another") is None
    assert gpu_floor.rate_of("another", flops=6e14) is None
    assert gpu_floor.rate_of("another", 6e14, None, 1e12) == (6e14, 1e14, 1e12)
    assert gpu_floor.rate_of("NVIDIA H200", 6e14) == (6e14, 1e14, 4.3e12)


def test_measured_ceilings_make_the_floors(tmp_path):
    machine = dict.fromkeys(("gpu", "driver", "torch", "triton", "cuda", "sources"), "x")
    record = Record(tmp_path / "r.jsonl", machine)
    for name, rate in (("bfloat16", 7e14), ("tf32", 3e14), ("copy", 2e12)):
        record.add("ceiling", (name,), {"name": name, "per_second": rate})
    assert gpu.known_rate(record, gpu.parse([])) == (7e14, 1e14, 2e12)
    assert gpu.known_rate(record, gpu.parse(["--flops", "8e14"])).bfloat16 == 8e14


def test_candidates_run_where_they_fit():
    memory = 141 * 10**9
    most = {
        name: max(n for n in gpu_floor.SIZES if gpu_floor.fits(name, n, memory))
        for name in gpu_floor.BYTES_PER_PAIR
    }
    assert {n for n, size in most.items() if size == 16384} == {"dense", "metric_learning"}
    assert set(most.values()) == {16384, 65536}


def test_both_paths_of_the_cuda_kernels_are_candidates(monkeypatch):
    monkeypatch.setattr("bench.gpu_cases.backends", lambda: ["cuda", "triton"])
    monkeypatch.setattr(
        "bench.gpu_cases.chosen_backend", lambda n, dtype: "cuda" if n <= 1024 else "triton"
    )
    assert {"triton", "tiles"} <= set(candidates(256, "bfloat16", (), False))
    assert {"cuda", "one_launch"} <= set(candidates(4096, "bfloat16", (), False))
    modes = ("compiled", "replayed", "autotuned")
    assert set(candidates(16384, "bfloat16", modes, False)) == {"ours", *modes}
    sizes = {shape.n for shape in gpu.shapes_of(gpu.parse(["quick"]))}
    assert sizes == {256, 1024, 4096, 16384}


def test_a_path_is_chosen_for_one_call(monkeypatch):
    seen = []
    from bench.gpu_cases import cuda_backend

    monkeypatch.setattr(
        ms_kernels, "multi_similarity_loss", lambda *a, **k: seen.append(cuda_backend.ONE_LAUNCH)
    )
    before = cuda_backend.ONE_LAUNCH
    cuda_by(7)(None, None)
    assert seen == [7] and cuda_backend.ONE_LAUNCH == before


def test_times_have_units():
    assert gpu_report.time(1.5) == "1.5 s" and gpu_report.time(6.7e-4) == "670 us"
    assert gpu_report.time(None) == "" and gpu_report.time(2e-8) == "0.02 us"


@pytest.mark.parametrize("flaw", ["loss", "nan", "gradient"])
def test_wrong_results_are_refused(flaw):
    batch = make_batch(96, 16, "float32", "mid")
    judge = Judge(batch, dense_fits=True)
    leaf = batch.x.clone().requires_grad_()
    loss = ours_with("panels")(leaf, batch.y)
    (dx,) = torch.autograd.grad(loss, leaf)
    loss = loss.detach()
    assert judge.refusal("ours", (loss, dx)) is None
    flawed = {
        "loss": (loss * 1.001, dx),
        "nan": (loss * float("nan"), dx),
        "gradient": (loss, dx.roll(1, 0)),
    }[flaw]
    for name in ("ours", "tiles", "triton"):
        assert "off by" in judge.refusal(name, flawed)


def test_some_rows_judge_a_huge_batch():
    batch = make_batch(200, 16, "bfloat16", "mid")
    losses = ms_kernels.multi_similarity_loss(
        batch.x.float(), batch.y, reduction="none", backend="panels"
    )
    assert check_rows(batch, lambda: losses) is None
    assert "off by" in check_rows(batch, lambda: losses + 0.01)
    assert isinstance(batch, Batch) and 0 < batch.kept < 1


def test_candidates_take_turns_and_ratios_are_to_ours():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in ("ours", "dense")}
    found = take_turns(runs, Timer((2, 2)), with_graph=True)
    assert order[:6] == ["ours", "dense", "ours", "ours", "dense", "dense"]
    assert found["ours"]["ratio"] == 1.0 and found["ours"]["graph"] > 0
    assert found["dense"]["gpu_low"] <= found["dense"]["gpu"] <= found["dense"]["gpu_high"]


def test_what_replays_graphs_of_its_own_is_not_captured(stand_in):
    """A graph inside a graph is refused, and what it leaves behind would be the others' too."""

    def tree():
        with stand_in.graph(stand_in.CUDAGraph()):
            pass

    found = take_turns({"ours": lambda: None, "replayed": tree}, Timer((2, 2)), with_graph=True)
    assert found["ours"]["graph"] > 0
    assert "graph of its own" in found["replayed"]["lost"]["graph"]


READ_BACK = [lambda t: t.item(), lambda t: t.tolist(), bool, int, float, range]


@pytest.mark.parametrize("read_back", READ_BACK)
def test_no_number_is_read_back_in_debug_mode(stand_in, read_back):
    number = torch.ones(1, dtype=torch.int64)
    with no_wait(stand_in), pytest.raises(RuntimeError, match="synchroniz"):
        read_back(number)
    assert read_back(number) in (1, [1], range(1))


def test_a_call_that_waits_is_not_captured(stand_in):
    number = torch.ones(1)
    found = take_turns({"ours": lambda: number.item()}, Timer((2, 2)), with_graph=True)
    assert "waits for the device" in found["ours"]["lost"]["graph"]
    assert not stand_in.capturing and number.item() == 1


def test_a_capture_that_fails_leaves_nothing_behind(stand_in):
    before = stand_in.current_stream()
    calls = iter(range(9))

    def breaks_when_captured():
        if next(calls) >= 2:
            raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        capture(stand_in, breaks_when_captured)
    assert not stand_in.capturing and stand_in.current_stream() is before
    capture(stand_in, lambda: None).replay()


def test_an_error_in_a_figure_costs_no_other():
    found = {"gpu": 1.0}
    extra(found, "peak_bytes", lambda run: run(), lambda: 1 / 0)
    extra(found, "launches", lambda run: 3, lambda: None)
    assert found["gpu"] == 1.0 and found["launches"] == 3
    assert found["lost"] == {"peak_bytes": "ZeroDivisionError: division by zero"}


def test_the_debug_mode_is_left_where_warnings_are_errors(stand_in):
    """torch warns where the mode is set, and the tests make errors of warnings."""
    with pytest.raises(UserWarning):
        stand_in.set_sync_debug_mode("error")
    stand_in.set_sync_debug_mode("default")
    number = torch.ones(1)
    with no_wait(stand_in), pytest.raises(RuntimeError, match="synchroniz"):
        number.item()
    assert stand_in.get_sync_debug_mode() == 0 and number.item() == 1
    assert why_not_captured(stand_in, lambda: None) is None


def test_the_debug_mode_is_set_in_one_place():
    """Elsewhere it could be left behind, as torch.cuda.graph leaves its stream where it fails."""
    root = Path(__file__).parents[1]
    setters = {
        path.name
        for folder in ("bench", "tests", "ms_kernels")
        for path in (root / folder).rglob("*.py")
        if "cuda.set_sync_debug_mode(" in path.read_text() or "cuda.graph(" in path.read_text()
    }
    assert setters - {Path(__file__).name} == {"gpu_capture.py"}


def test_what_the_host_lost_is_lost_to_the_case():
    def case(launches):
        launched = [{"name": "k", "launches": launches, "seconds": 1e-6}]
        return {"host": {"step": 1e-4, "lost": {"native": "no"}}, "launched": launched}

    found = case(3)
    gpu_latency.raise_lost(found, "triton")
    assert found["lost"] == {"host.native": "no"} and found["host"] == {"step": 1e-4}
    for backend, most in gpu_latency.LAUNCHES.items():
        assert gpu_latency.calls_of(backend) * most <= gpu_latency.QUEUE
        gpu_latency.raise_lost(found := case(3 * most), backend)
        assert "fill the queue" in found["lost"]["host"]


def test_compiled_steps_of_a_call_are_timed(monkeypatch):
    class Module:
        class Call:
            def __init__(self, depth):
                self.depth = depth

            def run(self, workspace):
                return workspace + self.depth

    monkeypatch.setattr(gpu_native.cuda_call, "module", lambda: Module)
    results = []

    def call():
        results.append(gpu_native.cuda_call.module().Call(3).run(4))

    assert gpu_native.native_time("cuda", call, 2) > 0 and results == [7, 7]
    assert gpu_native.cuda_call.module() is Module
    with pytest.raises(ValueError, match="panels"):
        gpu_native.native_time("panels", call, 2)
