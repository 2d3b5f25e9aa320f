"""What `make gpu` reads: outcomes of tests, counters of ncu, findings of the sanitizer."""

import os
import sys
from pathlib import Path

import pytest
from gpu_proof import ncu, process, proof, sanitizer

from bench.gpu_record import append, read

HERE = Path(__file__).parent


def test_tests_are_written_as_they_end(tmp_path):
    (tmp_path / "test_it.py").write_text(
        "import os, pytest, signal, time\n"
        "def test_passes(record_property): record_property('launches', 9)\n"
        "def test_fails(): assert 1 == 2, 'said'\n"
        "def test_is_skipped(): pytest.skip('for a reason')\n"
        "def test_hangs(): time.sleep(60)\n"
    )
    file, log = tmp_path / "r.jsonl", tmp_path / "log"
    append(file, {"kind": "machine", "on": "abc", "key": []})
    paths = os.pathsep.join([str(HERE), str(HERE.parent)])
    environment = {**os.environ, "PYTHONPATH": paths, "MSK_PROOF_STEP": "cuda"}
    environment |= {"MSK_PROOF_RESULTS": str(file)}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "gpu_proof.outcomes"]
    command += ["-p", "no:cacheprovider", "--rootdir", str(tmp_path), "test_it.py"]
    limit = 8.0
    while True:  # on a slow machine pytest may take longer to come as far as the test that hangs
        ended = process.run(command, limit, log, tmp_path, environment)
        found = {c["key"][1].split("::")[-1]: c for c in read(file) if c["kind"] == "test"}
        if "test_hangs" in found or limit > 60:
            break
        limit *= 3
    assert ended.killed
    assert found["test_passes"]["counted"] == {"launches": 9}
    assert found["test_fails"]["outcome"] == "failed" and "said" in found["test_fails"]["text"]
    assert "for a reason" in found["test_is_skipped"]["why"]
    assert found["test_hangs"]["outcome"] == "cut off" and found["test_hangs"]["on"] == "abc"
    assert "1 cut off" in proof.counted([c for c in read(file) if c["kind"] == "test"][-4:])


PEAK = "avg.pct_of_peak_sustained"
STALLED = "smsp__average_warps_issue_stalled"
COLUMNS = ["ID", "Process ID", "Kernel Name", "Block Size", "gpu__time_duration.sum"]
COLUMNS += [f"sm__throughput.{PEAK}_elapsed", f"sm__inst_executed_pipe_tensor_op.{PEAK}_active"]
COLUMNS += [f"{STALLED}_{why}_per_issue_active.ratio" for why in ("barrier", "wait")]
UNITS = ["", "", "", "", "nsecond", "%", "%", "inst", "inst"]
VALUES = ["0", "7", "void msk::gpu::batch_kernel(Problem)", "(256, 1, 1)", "21,500"]
VALUES += ["41.5", "n/a", "3.0", "1.0"]
TABLE = [",".join(f'"{cell}"' for cell in row) for row in (COLUMNS, UNITS, VALUES)]
RAW = "\n".join(["==PROF== Connected to process 7", *TABLE, "==PROF== Disconnected"])
LONG = """"ID","Kernel Name","Section Name","Metric Name","Metric Unit","Metric Value"
"0","scan","s","gpu__time_duration.sum","us","1,211.94"
"0","scan","s","sm__throughput.avg.pct_of_peak_sustained_elapsed","%","12.5"
"1","gradient","s","gpu__time_duration.sum","us","3"
"""


def test_counters_of_ncu_are_read():
    (kernel,) = ncu.profiles(RAW)
    assert kernel["kernel"].startswith("void msk::gpu::batch_kernel")
    assert kernel["seconds"] == pytest.approx(21.5e-6) and kernel["sm"] == 41.5
    assert kernel["tensor"] is None  # n/a: not counted on this GPU
    assert kernel["stalls"] == [("barrier", 0.75), ("wait", 0.25)]
    scan, gradient = ncu.profiles(LONG)
    assert scan["seconds"] == pytest.approx(1.21194e-3) and scan["sm"] == 12.5
    assert gradient["seconds"] == pytest.approx(3e-6) and gradient["sm"] is None
    assert ncu.profiles("==ERROR== no kernels were profiled\n") == []


MEMCHECK = """========= COMPUTE-SANITIZER
case cuda N=67 M=None D=33 torch.bfloat16
========= Invalid __global__ read of size 4 bytes
=========     at msk::gpu::batch_kernel(Problem)+0x1230
=========     by thread (32,0,0) in block (1,0,0)
=========
case cuda N=67 M=None D=33 torch.float32
========= ERROR SUMMARY: 1 error
"""
RACECHECK = """========= COMPUTE-SANITIZER
========= Error: Race reported between Write access at batch_kernel+0x10
=========     and Read access at batch_kernel+0x90 [4 hazards]
=========
========= RACECHECK SUMMARY: 4 hazards displayed (1 error, 3 warnings)
"""


def test_findings_of_the_sanitizer_are_read():
    found = list(sanitizer.read(MEMCHECK.splitlines()))
    assert [kind for kind, _ in found] == ["case", "finding", "case", "summary"]
    assert found[1][1][0].startswith("Invalid __global__ read") and len(found[1][1]) == 3
    assert found[-1] == ("summary", 1)
    (finding, summary) = sanitizer.read(RACECHECK.splitlines())
    assert "batch_kernel+0x90" in finding[1][1] and summary == ("summary", 1)
    clean = "========= RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)"
    assert list(sanitizer.read([clean])) == [("summary", 0)]
    assert list(sanitizer.read(["========= ERROR SUMMARY: 0 errors"])) == [("summary", 0)]


def test_the_sanitizer_looks_at_our_kernels():
    for tool in sanitizer.TOOLS:
        command = sanitizer.command_of(tool)
        chosen = command[: command.index(sys.executable)]
        assert ("kernel_substring=_ZN3msk" in chosen) == (tool != "initcheck")
    for path in (HERE.parent / "csrc" / "cuda").rglob("*.cuh"):  # so their names begin
        if "MSK_KERNEL(" in (text := path.read_text()):
            assert "namespace msk::gpu {" in text, path
