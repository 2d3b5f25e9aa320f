"""The launcher of the cuda backend against the stand-in of the CUDA runtime: capture of a first
call, grids, errors, and faults put into launch.cuh, each of which must show."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from host_gpu import build
from host_gpu.host import ALLOWED, STREAM, Host, batch, step
from host_gpu.runtime import LARGE, SMALL, TOO_SMALL, fresh

from ms_kernels.backends import cuda_call

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


@pytest.fixture(params=["one_launch", "by_tiles"])
def path(request):
    return request.param


def test_a_first_call_may_be_captured(monkeypatch, tmp_path, path):
    """Nothing waits for a warm-up: what a first call asks of the runtime is legal in a graph."""
    module = fresh(tmp_path)
    host = Host(monkeypatch, module, path)
    calls = host.calls_of(lambda: step(batch(130, None, 40, torch.bfloat16)))
    asked = [call.function for call in calls if not call.launches]
    assert set(asked) <= ALLOWED
    assert all(call.captured == 1 for call in calls if call.launches)
    if path == "one_launch":  # how many blocks fit, once: the next call knows
        assert asked.count("cudaOccupancyMaxActiveBlocksPerMultiprocessor") == 1
        again = host.calls_of(lambda: step(batch(130, None, 40, torch.bfloat16)))
        assert [call.function for call in again] == ["cudaSetDevice", "cudaLaunchCooperativeKernel"]


@pytest.mark.parametrize(("device", "largest"), [(LARGE, 264), (SMALL, 1)])
def test_the_grid_of_one_launch_is_resident(monkeypatch, device, largest):
    host = Host(monkeypatch, build.module(), "one_launch", device)
    (launch,) = host.launches_of(lambda: step(batch(1024, None, 512, torch.bfloat16)))
    assert launch.grid == largest
    (launch,) = host.launches_of(lambda: step(batch(1, None, 1, torch.bfloat16)))
    assert launch.grid == min(64, largest)  # a block for each row of a tile


@pytest.mark.parametrize(
    ("function", "error", "said"),
    [
        ("cudaSetDevice", 35, r"cudaSetDevice\(1\) failed: .*cudaErrorInsufficientDriver"),
        ("cudaLaunch", 700, "launch of .*kernel with grid [0-9]+, 128 threads, [0-9]+ bytes of"
         " shared memory failed: .*cudaErrorIllegalAddress"),
    ],
)  # fmt: skip
def test_an_error_of_the_driver_is_told(monkeypatch, path, function, error, said):
    host = Host(monkeypatch, build.module(), path)
    if function == "cudaLaunch":
        function += "CooperativeKernel" if path == "one_launch" else "Kernel"
    host.runtime.fails(function, error)
    sides = batch(70, None, 40, torch.float32)
    with pytest.raises(RuntimeError, match="ms_kernels: " + said):
        step(sides)
    assert host.launches_of(lambda: step(sides))  # it does not come up again


def test_an_occupancy_that_is_not_known_is_told(monkeypatch, tmp_path):
    host = Host(monkeypatch, fresh(tmp_path), "one_launch")
    host.runtime.fails("cudaOccupancyMaxActiveBlocksPerMultiprocessor", 1)
    with pytest.raises(RuntimeError, match="occupancy of batch_kernel failed: .*InvalidValue"):
        step(batch(70, None, 40, torch.float32))
    assert host.launches_of(lambda: step(batch(70, None, 40, torch.float32)))


def test_a_device_that_holds_no_block_is_told(monkeypatch):
    Host(monkeypatch, build.module(), "one_launch", TOO_SMALL)
    with pytest.raises(RuntimeError, match="with grid 0, .*cudaErrorInvalidConfiguration"):
        step(batch(70, None, 40, torch.float32))


PROBE = Path(__file__).parent / "stand_in_driver" / "probe.cu"
# A fault in launch.cuh, and the call or the refusal that shows it.
FAULTS = {
    "a_grid_that_is_not_resident": (
        "std::min(blocks, resident_blocks<kernel>(name, device, threads, shared))",
        "blocks",
        "cudaErrorCooperativeLaunchTooLarge",
    ),
    "another_stream": (
        "static_cast<cudaStream_t>(stream)),",
        "stream ? reinterpret_cast<cudaStream_t>(2) : nullptr),",
        None,
    ),
    "the_legacy_stream": (
        "static_cast<cudaStream_t>(stream)),",
        "stream ? nullptr : nullptr),",
        "cudaErrorStreamCaptureImplicit",
    ),
    "a_wait_for_the_stream": (
        "  void* arguments[]",
        '  check(cudaStreamSynchronize(static_cast<cudaStream_t>(stream)), "waiting");\n'
        "  void* arguments[]",
        "waiting failed: .*cudaErrorStreamCaptureUnsupported",
    ),
    "memory_of_its_own": (
        "  void* arguments[]",
        '  void* buffer;\n  check(cudaMalloc(&buffer, 1), "buffer");\n  void* arguments[]',
        "buffer failed: .*cudaErrorStreamCaptureUnsupported",
    ),
    "more_shared_memory_than_a_kernel_has": (
        "dim3(threads), arguments, shared,",
        "dim3(threads), arguments, shared + 49152,",
        "cudaErrorInvalidValue",
    ),
    "more_threads_than_a_block_has": (
        "dim3(threads), arguments",
        "dim3(16 * threads), arguments",
        "cudaErrorInvalidConfiguration",
    ),
    "another_device": (
        "go_to(device);",
        "go_to(device + 1);",
        "cudaErrorCooperativeLaunchTooLarge",
    ),
}


def probe(folder, text="", replacement=""):
    csrc = folder / "csrc"
    shutil.copytree(build.CSRC, csrc)
    target = csrc / "cuda" / "core" / "launch.cuh"
    source = target.read_text()
    assert text in source, "launch.cuh has changed: the fault must be put elsewhere"
    target.write_text(source.replace(text, replacement))
    shutil.copy(PROBE, csrc / "cuda" / "instance.cu")
    return build.module(csrc, ("batch_float64", "tiled_float64"), once=True)


def check_probe(monkeypatch, module):
    for path in ("one_launch", "by_tiles"):
        host = Host(monkeypatch, module, path)
        launches = host.launches_of(lambda: step(batch(1024, None, 512, torch.float64)))
        assert len(launches) == 1


def test_a_launch_without_a_fault_passes(monkeypatch, tmp_path):
    check_probe(monkeypatch, probe(tmp_path))


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_of_a_launch_shows(monkeypatch, tmp_path, name):
    text, replacement, refusal = FAULTS[name]
    module = probe(tmp_path, text, replacement)
    with pytest.raises(AssertionError if refusal is None else RuntimeError, match=refusal):
        check_probe(monkeypatch, module)


def test_work_goes_to_the_current_stream_of_the_tensors_device(monkeypatch):
    """What `Call.run` does with CUDA tensors, by a torch that has none."""
    entered, ran = [], []

    class Device:
        def __init__(self, device):
            self.device = device

        def __enter__(self):
            entered.append(self.device)

        def __exit__(self, *_):
            entered.append(None)

    def current_stream():
        assert entered == [torch.device("cuda:3")]
        return SimpleNamespace(cuda_stream=STREAM)

    def empty(size, dtype, device):
        assert device == torch.device("cuda:3") and dtype == torch.uint8
        return torch.zeros(size, dtype=dtype)

    monkeypatch.setattr(torch.cuda, "device", Device)
    monkeypatch.setattr(torch.cuda, "current_stream", current_stream)
    monkeypatch.setattr(cuda_call.torch, "empty", empty)
    call = object.__new__(cuda_call.Call)
    call.device = torch.device("cuda:3")
    call.native = SimpleNamespace(plan=lambda budget: 64, run=lambda *a: ran.append((a, *entered)))
    call.run()
    (((_, index, stream), inside),) = ran
    assert (index, stream, inside) == (3, STREAM, torch.device("cuda:3"))
    assert entered[-1] is None
