"""The machine of tests/host_gpu punishes what a GPU would: a fault put into a kernel shows."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import test_backward
import torch
from cases import SPECS, make_batch
from host_gpu import build

from ms_kernels import dispatch
from ms_kernels.backends import cuda

pytestmark = [
    pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not())),
    pytest.mark.slow,
]

# File, text, its replacement, and what the machine says; None: the numbers are wrong.
FAULTS = {
    "no_barrier_before_use": (
        "tile.cuh",
        "      __syncthreads();  // stage k",
        "      // stage k",
        "copy was not waited for|nobody wrote|no barrier between|copy to it is on its way",
    ),
    "no_barrier_before_reuse": (
        "tile.cuh",
        "    __syncthreads();  // the stages",
        "    // the stages",
        "no barrier between",
    ),
    "no_wait_for_copies": ("tile.cuh", "cp_async_wait_all();", "", "copy was not waited for"),
    "no_barrier_in_a_reduction": (
        "block_reduce.cuh",
        "  __syncthreads();",
        "",
        "nobody wrote|no barrier between",
    ),
    "barrier_for_some": (
        "block_reduce.cuh",
        "  __syncthreads();",
        "  if (threadIdx.x < 96) __syncthreads();",
        "nobody wrote|not reached by all|different barriers|no barrier between",
    ),
    "shared_memory_too_small": (
        "batch.cuh",
        "kThreads, kSharedBytes<P>,",
        "kThreads, kSharedBytes<P> / 2,",
        "outside of shared memory",
    ),
    "no_grid_barrier": (
        "batch.cuh",
        "      similarities<P>(p, first);\n      grid_barrier();",
        "      similarities<P>(p, first);",
        None,
    ),
    "wrong_row_of_a_fragment": (
        "product.cuh",
        "return m * 16 + lane() / 4 + e / 2 * 8;",
        "return m * 16 + (lane() / 4 + 1) % 8 + e / 2 * 8;",
        None,
    ),
    "wrong_depth_of_a_fragment": (
        "product.cuh",
        "lane() / 8 % 2 * 8);",
        "(1 - lane() / 8 % 2) * 8);",
        None,
    ),
    "warp_diverges": (
        "block_reduce.cuh",
        "  for (int mask = 16;",
        "  for (int mask = lane() == 3 ? 8 : 16;",
        "not reached by all|different instructions|different barriers",
    ),
}


def check(monkeypatch, module):
    why_missing = dispatch.why_missing
    monkeypatch.setitem(dispatch.DEVICE_OF, "cuda", "cpu")
    monkeypatch.setattr(dispatch, "why_missing", lambda n: None if n == "cuda" else why_missing(n))
    monkeypatch.setattr(cuda, "_module", lambda: module)
    # Several tiles for a block, of several steps each, their number odd.
    batch = make_batch(130, None, 129, SPECS["default"], torch.bfloat16)
    test_backward.check(batch, SPECS["default"], torch.bfloat16, "cuda", "mean")


def test_the_check_passes_without_a_fault(monkeypatch):
    check(monkeypatch, build.module(instances=("batch_bfloat16",)))


@pytest.mark.parametrize("name", FAULTS)
def test_fault_shows(name, tmp_path, monkeypatch):
    file, text, replacement, message = FAULTS[name]
    csrc = tmp_path / "csrc"
    shutil.copytree(build.CSRC, csrc)
    path = csrc / "cuda" / file
    source = path.read_text()
    assert text in source, f"{file} has changed: this fault must be put elsewhere"
    path.write_text(source.replace(text, replacement))
    module = build.module(csrc, ("batch_bfloat16",))
    error = AssertionError if message is None else RuntimeError
    with pytest.raises(error, match=message):
        check(monkeypatch, module)


SCRIPT = """
import importlib.util, sys
import torch
from ms_kernels.backends import cuda
from ms_kernels.backends.interface import Side
from ms_kernels.spec import MultiSimilaritySpec
spec = importlib.util.spec_from_file_location("_cuda", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
cuda._module = lambda: module
labels = torch.arange(70) // 3
for dtype in (torch.float16, torch.float32, torch.float64):
    x, r = torch.randn(70, 33).to(dtype), torch.randn(5, 33).to(dtype)
    for refs in (None, Side(r, labels[:5].contiguous(), None)):
        out = cuda.loss_and_gradient(Side(x, labels, None), refs, MultiSimilaritySpec(), True, True)
        assert out[0].isfinite().all()
print("no error")
"""


@pytest.mark.parametrize("fault", [None, "output", "input"])
def test_address_sanitizer(fault, tmp_path):
    """Global memory: every tensor is an allocation of its own, with forbidden bytes around it."""
    csrc = build.CSRC
    if fault is not None:
        csrc = tmp_path / "csrc"
        shutil.copytree(build.CSRC, csrc)
        file, text, replacement = {
            "output": ("embedding_gradient.cuh", "d >= depth) return;", "d > depth) return;"),
            "input": ("prepare.cuh", "i < side.count ? depth : 0", "depth + 1"),
        }[fault]
        source = (csrc / "cuda" / file).read_text()
        assert text in source
        (csrc / "cuda" / file).write_text(source.replace(text, replacement))
    names = ("batch_float16", "batch_float32", "batch_float64")
    library = build.build(csrc, names, sanitize=True)
    libasan = subprocess.run(
        ["g++", "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    environment = {**os.environ, "LD_PRELOAD": libasan, "ASAN_OPTIONS": "detect_leaks=0"}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(library)],
        env=environment,
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[1],
    )
    if fault is None:
        assert "no error" in run.stdout, run.stderr[-3000:]
    else:
        assert "AddressSanitizer: heap-buffer-overflow" in run.stderr, run.stderr[-3000:]
