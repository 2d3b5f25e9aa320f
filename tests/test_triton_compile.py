"""Ahead-of-time compilation of the Triton kernels, without a GPU: of every dtype and tile for three
architectures in `make compile`, of a tile or two for sm_90 in the suite.

tests/triton_resources.json holds what the compiler said last; `python tests/test_triton_compile.py`
writes it anew. A figure that changes is a finding: look at it, then write the table.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

triton = pytest.importorskip("triton")

HERE = Path(__file__).parent
TABLE = HERE / "triton_resources.json"
# Shared memory that a block may ask for, in bytes.
MOST_SHARED = {"sm_80": 163 * 1024, "sm_90": 227 * 1024, "sm_100": 227 * 1024}
# Instructions of a warp for each pair of one thread: beside those of the loop over the depth, and
# of the stores of kept exponentials, which deeper rows have.
MOST_SCANNED = 24.5
# Of the loop over the depth, 64 of it: addresses that change in it took 134, and waited for each
# other.
MOST_OF_DEPTH = 88
SCANS = [f"negative_scan/bf16-D{depth}" for depth in (32, 64, 128, 256)]
# For a pair, a warp's instructions times warps: a third of what 8 warps issued that computed every
# row of 64 x 64 twice.
MOST_OF_GRADIENT = 962 * 8 / 3 / 64**2
MATRIX_KERNELS = {
    "positive_scan",
    "negative_scan",
    "finish",
    "gradient",
    "positive_weights",
    "stashed_gradient",
    "hardest_scan",
}
# Loads and stores of what did not fit the registers. Given ids are two more for each row and column
# of a tile. The gradient of 128 columns is faster on an H200 than that of 64, which spills nothing.
# For sm_100 the compiler gives some kernels 128 registers instead of 171, for more blocks at once.
_FINISH = ("bf16-D64", "fp16-D256", "tf32-D32")
_SCAN = (*_FINISH, "tf32x3-D32", "bf16-D1024-NTXent", "bf16-D1024-Triplet")
SPILLS = {
    "sm_80": {
        "gradient/bf16-D32": 4,
        "gradient/tf32x3-D64": 4,
        "negative_scan/tf32x3-D128-euclidean": 3,
    },
    # A kernel of several cases bears the name of the first.
    "sm_90": {
        "gradient/bf16-D128": 8,
        **{f"negative_scan/{case}": 3 for case in ("fp64-D32", "fp64-D64")},
    },
    "sm_100": {
        "finish/bf16-D256-ids": 12,
        "finish/bf16-D128-counted": 8,
        "finish/ffma-D16": 2,
        "negative_scan/fp64-D32": 7,
        "positive_scan/tf32x3-D128-hardest": 5,
        "positive_scan/tf32x3-D128-euclidean": 5,
        **{f"positive_scan/tf32x3-D128-Circle-{case}": 5 for case in ("learned", "euclidean")},
        **{f"finish/{case}": 8 for case in _FINISH},
        **{f"positive_scan/{case}": 5 for case in _SCAN},
    },
}
MATRIX = {"sm_80": "mma", "sm_90": "wgmma", "sm_100": "tcgen05"}


def pytest_generate_tests(metafunc):
    if "architecture" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-architecture")
        metafunc.parametrize("architecture", MOST_SHARED if every else ["sm_90"])


def compile_all(architecture, *chosen):
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, HERE / "compile_triton.py", architecture, *chosen]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.slow
def test_kernels_compile_without_spills(architecture, pytestconfig):
    every = pytestconfig.getoption("--every-architecture")
    found = compile_all(architecture, *([] if every else ["--some"]))
    kernels = found["kernels"]
    assert {name.split("/")[0] for name in kernels} > MATRIX_KERNELS
    errors = {name: row["error"] for name, row in kernels.items() if "error" in row}
    assert not errors
    spills = {name: row["spills"] for name, row in kernels.items() if row["spills"]}
    assert spills == {k: n for k, n in SPILLS.get(architecture, {}).items() if k in kernels}
    assert max(row["shared_bytes"] for row in kernels.values()) <= MOST_SHARED[architecture]
    for name, row in kernels.items():
        kernel, case = name.split("/")
        if kernel in MATRIX_KERNELS and not case.startswith(("fp64", "ffma")):
            assert row["matrix"] == [MATRIX[architecture]], name
    if architecture == "sm_90":
        # A kernel of several depths bears the name of the first.
        scan = next(kernels[name] for name in SCANS if name in kernels)
        gradient = kernels["gradient/bf16-D128"]
        of_thread = scan["tile"] / (32 * scan["warps"])
        assert scan["loop_instructions"] / of_thread <= MOST_SCANNED
        deep = kernels["negative_scan/bf16-D256"]
        assert 0 < deep["depth_instructions"] <= MOST_OF_DEPTH
        issued = gradient["loop_instructions"] * gradient["warps"]
        assert issued <= MOST_OF_GRADIENT * gradient["tile"]
    table = json.loads(TABLE.read_text())
    if table["triton"] != found["triton"]:
        pytest.skip(f"the table is of Triton {table['triton']}, this is {found['triton']}")
    if not every:  # a kernel of several cases bears the name of the first
        wanted = {name: table[architecture][name] for name in table[architecture].keys() & kernels}
        assert len(wanted) > len(kernels) / 2
        kernels = {name: kernels[name] for name in wanted}
        table[architecture] = wanted
    assert kernels == table[architecture]


def write_table():
    found = {name: compile_all(name) for name in MOST_SHARED}
    table = {name: rows["kernels"] for name, rows in found.items()}
    TABLE.write_text(json.dumps({"triton": triton.__version__, **table}, indent=1) + "\n")


if __name__ == "__main__":
    write_table()
