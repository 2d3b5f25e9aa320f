import os
import sys
import warnings
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():  # before any of our kernels is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

# Graphs compiled by another checkout are not what a test of this one should run.
os.environ.setdefault(
    "TORCHINDUCTOR_CACHE_DIR", str(Path(__file__).parents[1] / "build" / "inductor")
)

pytest.register_assert_rewrite("cases", "edge_inputs", "edges", "family", "judge", "op_checks")

import cases  # noqa: E402
from cases import BACKENDS  # noqa: E402
from interpreter import round_as_a_gpu  # noqa: E402

from ms_kernels import options  # noqa: E402

try:
    from hypothesis import settings
except ImportError:  # then test_properties.py is left out
    pass
else:
    # The same examples in every run: a failure in CI must come back at home.
    settings.register_profile("steady", derandomize=True, deadline=None, max_examples=8)
    settings.load_profile("steady")


def pytest_addoption(parser):
    parser.addoption(
        "--every-architecture",
        action="store_true",
        help="compile all kernels for all machines (make compile); the suite looks at some",
    )
    parser.addoption(
        "--budgets", action="store_true", help="print each file's largest ratio of error to budget"
    )


# What executes or compiles the GPU's code without a GPU: half of the time of all.
GPU_CODE = ("host_gpu", "cuda_", "triton_compile", "triton_launcher", "prove_gpu", "carried")


@pytest.hookimpl(tryfirst=True)  # before marks choose
def pytest_collection_modifyitems(items):
    """Long ones first: one that begins when all others are done would be waited for."""
    for item in items:
        of_file = item.path.stem.removeprefix("test_").startswith(GPU_CODE)
        executed = hasattr(item, "callspec") and "cuda-" in item.callspec.id
        if of_file or executed:
            item.add_marker("gpu_code")
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


@pytest.fixture(autouse=True)
def largest_ratio(request):
    """Properties of a report reach the process that prints, whichever ran the test."""
    cases.RATIOS.clear()
    yield
    if cases.RATIOS:
        request.node.user_properties.append(("error / budget", max(cases.RATIOS)))


def pytest_terminal_summary(terminalreporter, config):
    if not config.getoption("--budgets"):
        return
    largest = {}
    for report in terminalreporter.getreports(""):  # setups and teardowns
        for name, ratio in report.user_properties:
            if name == "error / budget":
                file = report.nodeid.split("::")[0]
                largest[file] = max(largest.get(file, (0.0, "")), (ratio, report.nodeid))
    terminalreporter.section("largest error / budget")
    for _, (ratio, test) in sorted(largest.items()):
        terminalreporter.write_line(f"{ratio:.2f}  {test}")


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


@pytest.fixture(autouse=True)
def steady():
    torch.manual_seed(0)
    if "PYTEST_XDIST_WORKER" in os.environ:
        torch.set_num_threads(1)  # the workers share the cores; tests of threads ask for theirs
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        # Infinities are ordinary operands of a kernel; NumPy under the interpreter remarks on them.
        warnings.filterwarnings("ignore", module="triton.runtime.interpreter")
        # What the compiler of torch 2.6 says of itself.
        warnings.filterwarnings("ignore", "Skipping serialization of skipfiles")
        # Forward mode of torch 2.14 compiles its own decompositions by it.
        warnings.filterwarnings("ignore", "`torch.jit", category=FutureWarning)
        yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def rounding_of_a_gpu():
    if "triton.runtime.interpreter" in sys.modules:
        round_as_a_gpu()


@pytest.fixture(autouse=True)
def restore_options():
    saved = dict(vars(options))
    yield
    vars(options).update(saved)


@pytest.fixture(autouse=True)
def poison(monkeypatch):
    """Memory that the package allocates without filling holds NaN: an unwritten output shows."""
    real = torch.empty

    def empty(*args, **options):
        out = real(*args, **options)
        value = 255 if out.dtype == torch.uint8 else -1  # bytes of 255 are a NaN too
        with torch.no_grad():
            return out.fill_(float("nan") if out.is_floating_point() else value)

    monkeypatch.setattr(torch, "empty", empty)


@pytest.fixture
def stand_in(monkeypatch):
    """The GPU bench on the device of a rehearsal, with panels: interpreted kernels take seconds."""
    from bench import gpu_device
    from bench.gpu_stand_in import StandIn

    kinds, watched = torch.autograd.DeviceType, torch.profiler.ProfilerActivity
    found = gpu_device.Device("cpu", StandIn(), kinds.CPU, (watched.CPU,), 1 << 10, "eager")
    for module in (
        "gpu_timing",
        "gpu_cases",
        "gpu",
        "gpu_latency",
        "gpu_machine",
        "gpu_family",
        "gpu_device",
    ):
        monkeypatch.setattr(f"bench.{module}.device", lambda: found)
    for module in ("gpu_cases", "gpu_latency"):
        monkeypatch.setattr(f"bench.{module}.backends", lambda: ["panels"])
    monkeypatch.setattr("bench.gpu_timing.GRAPH_STEPS", 2)
    return found.cuda


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A machine that has everything `make gpu` asks for."""
    from gpu_proof.site import Site

    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    found = Site(tmp_path)
    monkeypatch.setattr(Site, "tool", lambda self, name: f"/bin/{name}")
    monkeypatch.setattr(Site, "importable", lambda self, name: True)
    monkeypatch.setattr(Site, "no_cuda_module", None)
    found.carried = None
    found.probe = {"available": True, "capability": [9, 0]}
    return found
