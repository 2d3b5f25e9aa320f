"""GPUs, drivers and processes that the cuda backend cannot use: told, and passed over by auto."""

import os
import types
import warnings

import pytest
import torch

import ms_kernels
from ms_kernels.__main__ import info
from ms_kernels.backends import cuda, cuda_call, dispatch


@pytest.fixture
def machine(monkeypatch):
    """A GPU, a driver and a compiled module as `machine(...)` describes them; asked anew."""

    def describe(capability=(9, 0), driver=13000, runtime=13000, built="80-real,90-real", **torch_):
        def ask(device=None):
            if isinstance(capability, Exception):
                raise capability
            return capability[device] if isinstance(capability, dict) else capability

        module = types.SimpleNamespace(architectures=built, versions=lambda: (driver, runtime))
        monkeypatch.setattr(cuda_call, "module", lambda: module)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: torch_.get("available", True))
        monkeypatch.setattr(torch.cuda, "get_device_capability", ask)
        monkeypatch.setattr(
            torch.cuda, "is_current_stream_capturing", torch_.get("probe", lambda: False)
        )
        monkeypatch.setattr(torch.version, "hip", torch_.get("hip"))
        dispatch.forget()

    yield describe
    monkeypatch.undo()
    dispatch.forget()
    cuda_call.refuse_device.cache_clear()


FORKED = RuntimeError(
    "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you must "
    "use the 'spawn' start method"
)


def broken_context():
    raise RuntimeError("CUDA error: an illegal memory access was encountered\nCUDA kernel errors")


# (the machine, what its reason says, the way out that it names)
UNFIT = {
    "driver of an earlier major": (
        {"driver": 12040},
        "the module's CUDA runtime is 13.0, the driver serves CUDA 12.4",
        "update the driver (to 580.65 or later), or build with an older nvcc: CUDACXX=",
    ),
    "no driver": (
        {"driver": 0, "runtime": 12080},
        "the module's CUDA runtime is 12.8, there is no CUDA driver",
        "update the driver (to 525.60 or later)",
    ),
    "PTX newer than the driver": (
        {"driver": 12040, "runtime": 12080, "built": "80-real,80-virtual"},
        "this GPU has only PTX in the module, which an older driver cannot compile",
        "update the driver, or build for this GPU: MSK_CUDA=ON pip install",
    ),
    "old GPU": (
        {"capability": (7, 5)},
        "this GPU has compute capability 7.5, the kernels need 8.0 or newer",
        "use backend='panels'",
    ),
    "other architectures": (
        {"capability": (10, 0)},
        "this GPU has compute capability 10.0, the module is built for 80-real,90-real",
        "build with CMAKE_CUDA_ARCHITECTURES=100: MSK_CUDA=ON pip install",
    ),
    "ROCm": ({"hip": "6.2"}, "is built for ROCm, the kernels are for NVIDIA GPUs", "'panels'"),
    "hidden GPU": ({"available": False}, "sees no CUDA device", "install a CUDA build"),
    "forked": (
        {"capability": FORKED},
        "CUDA cannot be used in this process (Cannot re-initialize CUDA in forked subprocess.",
        "start a new one, and workers that use the GPU by multiprocessing's 'spawn'",
    ),
    "broken context": (
        {"probe": broken_context},
        "(CUDA error: an illegal memory access was encountered); start a new one",
        "start a new one",
    ),
}


@pytest.mark.parametrize("fault", UNFIT)
def test_a_machine_that_cannot_run_the_kernels(fault, machine, monkeypatch, capsys):
    """backends() and info tell the reason and the way out; auto goes on, an explicit one stops."""
    described, reason, way_out = UNFIT[fault]
    machine(**described)
    state = ms_kernels.backends()["cuda"]
    assert not state.available and reason in state.note and way_out in state.note
    info()
    assert f"cuda       no   {state.note}" in capsys.readouterr().out
    monkeypatch.setattr(dispatch.MODULES["triton"], "missing", lambda: None)
    dispatch.forget()
    assert dispatch.resolve("auto", "cuda") == "triton"
    with pytest.raises(ValueError, match="backend: 'cuda' cannot be used here: ") as raised:
        dispatch.resolve("cuda", "cuda")
    assert reason in str(raised.value) and way_out in str(raised.value)
    assert str(raised.value).count("backend='panels'") <= 1 and "panels'" in str(raised.value)


@pytest.mark.parametrize(
    ("driver", "runtime", "built"),
    [
        (13000, 13000, "90-virtual"),
        (13010, 12080, "90-virtual"),  # a later driver serves every runtime
        (12040, 12080, "80-real,90-real"),  # cubins run on a driver of the same major version
        (12000, 12090, "90-real,90-virtual"),
        (13000, 13020, "90"),
    ],
)
def test_a_driver_that_serves_the_module(driver, runtime, built):
    assert cuda.unfit((9, 0), built, driver, runtime) is None


def test_a_module_of_an_earlier_build_is_a_reason(machine, monkeypatch):
    machine()
    monkeypatch.setattr(cuda_call, "module", lambda: types.SimpleNamespace(architectures="90-real"))
    dispatch.forget()
    note = ms_kernels.backends()["cuda"].note
    assert "is of an earlier ms_kernels; build it anew: MSK_CUDA=ON pip install" in note


def test_what_torch_says_of_the_driver_is_passed_on(machine, monkeypatch):
    def old_driver():
        warnings.warn(
            "CUDA initialization: The NVIDIA driver is too old.\nUpdate it.", stacklevel=1
        )
        return False

    machine()
    monkeypatch.setattr(torch.cuda, "is_available", old_driver)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    note = ms_kernels.backends()["cuda"].note
    assert "sees no CUDA device (CUDA initialization: The NVIDIA driver is too old); see" in note
    assert "CUDA_VISIBLE_DEVICES" in note


def test_a_context_that_breaks_later_is_seen(machine, monkeypatch):
    machine()
    assert ms_kernels.backends()["cuda"].available
    assert dispatch.resolve("cuda", "cuda") == "cuda"
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", broken_context)
    assert not ms_kernels.backends()["cuda"].available
    with pytest.raises(ValueError, match="illegal memory access"):
        dispatch.resolve("cuda", "cuda")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_forked_process_asks_anew(machine, monkeypatch):
    """What its parent knew of CUDA is not true of it."""
    machine()
    assert "cuda" in dispatch.built("cuda")
    parent = os.getpid()

    def ask(device=None):
        if os.getpid() != parent:
            raise FORKED
        return (9, 0)

    monkeypatch.setattr(torch.cuda, "get_device_capability", ask)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's threads, which the child does not use
        child = os.fork()
    if child == 0:
        said = dispatch.why_missing("cuda") or ""
        os._exit(0 if "forked subprocess" in said and "cuda" not in dispatch.built("cuda") else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "cuda" in dispatch.built("cuda")


def test_each_gpu_is_asked_what_it_can_do(machine):
    """The current one may be newer than that of the tensors."""
    old = torch.device("cuda:1")
    machine({None: (9, 0), torch.device("cuda:0"): (9, 0), old: (7, 5)})
    assert cuda.missing() is None
    cuda_call.refuse_device(torch.device("cuda:0"))
    with pytest.raises(ValueError, match="embeddings: on cuda:1, this GPU has .* 7.5, the kernels"):
        cuda_call.refuse_device(old)


# (the machine, what the triton backend's reason says)
UNFIT_FOR_TRITON = {
    "old GPU": ({"capability": (7, 5)}, "the kernels need a GPU of compute capability 8.0"),
    "ROCm": ({"hip": "6.2"}, "is built for ROCm, where the kernels have never run"),
    "hidden GPU": ({"available": False}, "sees no CUDA device"),
    "forked": ({"capability": FORKED}, "CUDA cannot be used in this process (Cannot re-init"),
    "broken context": ({"probe": broken_context}, "(CUDA error: an illegal memory access was"),
}


class NoLauncher:
    """Triton's driver where nothing can compile the part of the launcher that is in C."""

    def get_current_target(self):
        raise RuntimeError("Failed to find C compiler. Please specify via CC.\nMore.")


@pytest.mark.parametrize("fault", UNFIT_FOR_TRITON)
def test_a_machine_that_cannot_run_triton(fault, machine, monkeypatch):
    pytest.importorskip("triton")
    described, reason = UNFIT_FOR_TRITON[fault]
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    machine(**described)
    state = ms_kernels.backends()["triton"]
    assert not state.available and reason in state.note
    with pytest.raises(ValueError, match="backend: 'triton' cannot be used here: "):
        dispatch.resolve("triton", "cuda")


def test_without_a_c_compiler_triton_is_passed_over(machine, monkeypatch):
    """Triton builds a part of its launcher when it first launches, which would raise then."""
    runtime = pytest.importorskip("triton.runtime")
    monkeypatch.setenv("TRITON_INTERPRET", "0")
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    machine({None: (9, 0), torch.device("cuda", 0): (9, 0)})
    monkeypatch.setattr(runtime.driver, "_active", NoLauncher(), raising=False)
    monkeypatch.setattr(type(runtime.driver), "active", NoLauncher(), raising=False)
    note = ms_kernels.backends()["triton"].note
    assert "cannot build its launcher (Failed to find C compiler. Please specify via CC)" in note
    assert "apt install gcc python3-dev" in note
