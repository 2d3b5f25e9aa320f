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
import importlib.util, sys
from cases import MultiSimilarityOptions
import torch
from ms_kernels.backends import cuda
from ms_kernels.backends.interface import Side
from ms_kernels.rules.spec import PairSpec
spec = importlib.util.spec_from_file_location("_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cuda._module = lambda: module
cuda.ONE_LAUNCH = int(sys.argv[2])
labels = torch.arange(70) // 3
for dtype in map(torch.__dict__.get, sys.argv[3:]):
    x, r = torch.randn(70, 33).to(dtype), torch.randn(5, 33).to(dtype)
    for refs in (None, Side(r, labels[:5].contiguous(), None)):
        out = cuda.loss_and_gradient(Side(x, labels, None), refs, PairSpec(), True, True)
        assert out[0].isfinite().all()
print("no error")
"""


@pytest.mark.parametrize(
    ("path", "fault"),
    [("one_launch", None), ("by_tiles", None), ("one_launch", "input"), ("by_tiles", "output")],
)
def test_address_sanitizer(path, fault, tmp_path):
    """Global memory: every tensor is an allocation of its own, with forbidden bytes around it."""
    csrc = build.CSRC
    if fault is not None:
        csrc = tmp_path / "csrc"
        shutil.copytree(build.CSRC, csrc)
        file, text, replacement = {
            "output": ("tiled/tile_gradient.cuh", "depth) return;", "depth + 1) return;"),
            "input": ("pairs/prepare.cuh", "i < side.count ? depth : 0", "depth + 1"),
        }[fault]
        source = (csrc / "cuda" / file).read_text()
        assert text in source
        (csrc / "cuda" / file).write_text(source.replace(text, replacement))
    kind = {"one_launch": "batch", "by_tiles": "tiled"}[path]
    # A fault is one of every operand type: one is enough to see it.
    dtypes = ["float32"] if fault else ["float16", "float32"]
    names = tuple(f"{kind}_{name}" for name in dtypes)
    library = build.build(csrc, names, sanitize=True)
    libasan = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": libasan, "ASAN_OPTIONS": "detect_leaks=0"}
    largest = {"one_launch": "1024", "by_tiles": "-1"}[path]
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library), largest, *dtypes],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    if fault is None:
        assert "no error" in run.stdout, run.stderr[-3000:]
    else:
        assert "AddressSanitizer: heap-buffer-overflow" in run.stderr, run.stderr[-3000:]
