"""The GPU bench without a GPU: its arithmetic, its memory rule, its table, and a dry run."""

import json

import pytest
import torch

import ms_kernels
from bench import gpu, gpu_floor, gpu_machine
from bench.gpu_cases import Batch, Judge, check_rows, make_batch, ours_with
from bench.gpu_timing import DryTimer, take_turns


def test_floor_is_one_product_and_two_passes():
    rate = gpu_floor.rate_of("NVIDIA H200")
    floor = gpu_floor.floor_of(16384, 512, "bfloat16", rate)
    assert floor.products == pytest.approx(2 * 174e-6, rel=0.01)
    assert floor.bytes == pytest.approx(8e-6, rel=0.05)
    assert gpu_floor.floor_of(16384, 512, "float32", rate).bytes == 2 * floor.bytes


def test_rates_are_known_or_given():
    assert gpu_floor.rate_of("NVIDIA H200").bfloat16 == 790e12
    assert gpu_floor.rate_of("another") is None
    assert gpu_floor.rate_of("another", flops=6e14) is None
    assert gpu_floor.rate_of("another", 6e14, None, 1e12) == (6e14, 1e14, 1e12)
    assert gpu_floor.rate_of("NVIDIA H200", 6e14) == (6e14, 1e14, 4.3e12)


def test_candidates_run_where_they_fit():
    memory = 141 * 10**9
    fitting = {
        name: max(n for n in gpu_floor.SIZES if gpu_floor.fits(name, n, memory))
        for name in gpu_floor.BYTES_PER_PAIR
    }
    wanted = {"ours": 65536, "triton": 65536, "compiled": 65536, "replayed": 65536}
    wanted |= {"dense": 16384, "metric_learning": 16384}
    assert fitting == wanted


def test_times_have_units():
    assert gpu_floor.time(1.5) == "1.5 s" and gpu_floor.time(6.7e-4) == "670 us"
    assert gpu_floor.time(None) == "" and gpu_floor.time(2e-8) == "0.02 us"


@pytest.mark.parametrize("flaw", ["loss", "nan", "gradient"])
def test_wrong_results_are_refused(flaw):
    batch = make_batch(96, 16, "float32", "mid", "cpu", "panels")
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
    assert "off by" in judge.refusal("ours", flawed)


def test_some_rows_judge_a_huge_batch():
    batch = make_batch(200, 16, "bfloat16", "mid", "cpu", "panels")
    losses = ms_kernels.multi_similarity_loss(
        batch.x.float(), batch.y, reduction="none", backend="panels"
    )
    assert check_rows(batch, lambda: losses) is None
    assert "off by" in check_rows(batch, lambda: losses + 0.01)
    assert isinstance(batch, Batch) and 0 < batch.kept < 1


def test_candidates_take_turns_and_ratios_are_to_ours():
    order = []
    runs = {name: lambda name=name: order.append(name) for name in ("ours", "dense")}
    found = take_turns(runs, DryTimer(), with_graph=False)
    assert order[:6] == ["ours", "dense", "ours", "ours", "dense", "dense"]
    assert found["ours"]["ratio"] == 1.0 and found["ours"]["graph"] is None
    assert found["dense"]["gpu_low"] <= found["dense"]["gpu"] <= found["dense"]["gpu_high"]


def test_dry_run(tmp_path, capsys):
    assert gpu.main(["--dry-run", "--results", str(tmp_path)]) == 0
    found = json.loads((tmp_path / "dry.json").read_text())
    assert {"torch", "triton", "commit", "nvidia_smi", "cuda", "driver"} <= set(found["machine"])
    assert len(found["cases"]) == 3 and found["rate"]["bfloat16"] == 1e12
    for case in found["cases"]:
        assert case["candidates"]["ours"]["gpu"] > 0 and case["floor"]["products"] > 0
    log = (tmp_path / "dry.log").read_text()
    assert "floors at 1 TFLOP/s bfloat16" in log
    assert (
        "| 96 | 16 | float32 | mid |" in log
        and "| panels |" in log
        and log in capsys.readouterr().out
    )
    # A second run adds its cases to those of the first.
    assert (
        gpu.main(
            [
                "--dry-run",
                "--no-huge",
                "--sizes",
                "40",
                "--dtypes",
                "float32",
                "--results",
                str(tmp_path),
            ]
        )
        == 0
    )
    assert len(json.loads((tmp_path / "dry.json").read_text())["cases"]) == 4


def test_results_of_another_commit_are_not_mixed(tmp_path):
    machine = gpu_machine.describe("test")
    case = {"n": 1, "d": 1, "dtype": "float32", "regime": "mid", "backend": "cuda"}
    gpu_machine.Store(tmp_path / "a.b", machine, {}).add(case)
    assert gpu_machine.Store(tmp_path / "a.b", machine, {}).cases == [case]
    assert gpu_machine.Store(tmp_path / "a.b", {**machine, "commit": "other"}, {}).cases == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys):
    assert gpu.main([]) == 2
    assert "--dry-run" in capsys.readouterr().out


def test_small_batches_are_those_where_launches_are_the_cost():
    cases = gpu.cases_of(gpu.parse(["small"]))
    assert {case[0] for case in cases} == {80, 240, 480, 1024}
    assert {case[1] for case in cases} == {512, 4096, 8448}
    found = gpu.Setting(True, gpu_floor.RATES["H200"], small=True).candidates
    assert list(found)[0] == "ours" and "compiled" in found
