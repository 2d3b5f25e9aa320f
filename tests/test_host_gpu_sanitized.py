"""Global memory under AddressSanitizer, in the machine of tests/host_gpu."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from host_gpu import build

pytestmark = [
    pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not())),
    pytest.mark.slow,
]

SCRIPT = """
import ctypes, importlib.util, sys
import torch
from ms_kernels.backends import cuda, cuda_call
from ms_kernels.backends.interface import Side
from ms_kernels.rules.spec import PairSpec
spec = importlib.util.spec_from_file_location("_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
ctypes.c_int.in_dll(ctypes.CDLL(sys.argv[1]), "host_gpu_fault").value = int(sys.argv[3])
cuda_call.module = lambda: module
cuda_call.DEVICE = "cpu"
cuda.ONE_LAUNCH, cuda.SMALL = map(int, sys.argv[2].split())
labels = torch.arange(70) // 3
for dtype in map(torch.__dict__.get, sys.argv[4:]):
    x, r = torch.randn(70, 33).to(dtype), torch.randn(5, 33).to(dtype)
    for refs in (None, Side(r, labels[:5].contiguous(), None)):
        out = cuda.loss_and_gradient(Side(x, labels, None), refs, PairSpec(), True, True)
        assert out[0].isfinite().all()
print("no error")
"""


# Reads or writes past the end of what is global while it is planted: file, text, and what is there.
FAULTS = {
    "input": (
        "pairs/prepare.cuh",
        "i < side.count ? depth : 0",
        "{planted} ? depth + 1 : i < side.count ? depth : 0",
    ),
    "output": ("tiled/tile_gradient.cuh", "depth) return;", "depth + {planted}) return;"),
}


@pytest.fixture(scope="module")
def csrc(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sanitized") / "csrc"
    shutil.copytree(build.CSRC, folder)
    for number, (file, text, replacement) in enumerate(FAULTS.values(), 1):
        source = (folder / "cuda" / file).read_text()
        assert text in source
        planted = replacement.format(planted=f"(host_gpu_fault == {number})")
        (folder / "cuda" / file).write_text(source.replace(text, planted))
    return folder


@pytest.mark.parametrize(
    ("path", "fault"),
    [
        *[(path, None) for path in ("one_launch", "small", "by_tiles")],
        *[("one_launch", "input"), ("by_tiles", "output")],
    ],
)
def test_address_sanitizer(path, fault, csrc):
    """Global memory: every tensor is an allocation of its own, with forbidden bytes around it."""
    kind = {"one_launch": "batch", "small": "small", "by_tiles": "tiled"}[path]
    names = (f"{kind}_float16", f"{kind}_float32")
    # A fault is one of every operand type: one is enough to see it.
    dtypes = ["float32"] if fault else ["float16", "float32"]
    planted = "0" if fault is None else str(1 + list(FAULTS).index(fault))
    library = build.build(csrc, names, sanitize=True)
    libasan = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": libasan, "ASAN_OPTIONS": "detect_leaks=0"}
    largest = {"one_launch": "1024 -1", "small": "1024 1024", "by_tiles": "-1 -1"}[path]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library), largest, planted, *dtypes],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    if fault is None:
        assert "no error" in run.stdout, run.stderr[-3000:]
    else:
        assert "AddressSanitizer: heap-buffer-overflow" in run.stderr, run.stderr[-3000:]
