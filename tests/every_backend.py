"""Every backend on a machine without a GPU: Triton in its interpreter, CUDA executed on the CPU."""

import pytest
import torch
from host_gpu import build
from host_gpu.serve import serve

import ms_kernels

NAMES = ["reference", "panels", "cpu", "triton", "cuda-one_launch", "cuda-by_tiles"]


def served(monkeypatch, name):
    """The backend of a name, ready to be called; skips what is not there."""
    name, _, path = name.partition("-")
    if name == "cuda":
        if build.why_not() is not None:
            pytest.skip(str(build.why_not()))
        return serve(monkeypatch, build.module(), path)
    if name != "reference" and name not in ms_kernels.backends.dispatch.built():
        pytest.skip(f"{name}: {ms_kernels.backends()[name].note}")
    if name == "triton" and torch.cuda.is_available():
        pytest.skip("tests/test_gpu.py is for kernels on a GPU")
    return name
