"""python tests/prove_gpu.py [quick] [step ...]: all that a GPU must show, with this Python.

Steps: build, info, kernels, suite, memcheck, racecheck, synccheck, initcheck, bench, small, family;
all of them if none is named. Each runs to its end even if one before it failed; what failed is said
at the end. Nothing is installed: the packages are this Python's own.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from xml.etree import ElementTree

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))
GPU_TESTS = (
    "test_triton",
    "test_triton_lists",
    "test_triton_family",
    "test_gpu",
    "test_gpu_symmetry",
    "test_gpu_cuda",
    "test_gpu_family",
)
REPORT = ROOT / "build" / "gpu.xml"
SANITIZERS = ("memcheck", "racecheck", "synccheck", "initcheck")
STEPS = ("build", "info", "kernels", "suite", *SANITIZERS, "bench", "small", "family")
NEEDED = ("torch", "triton", "numpy", "pytest")
# Without each of these something is left out.
OPTIONAL = {
    "hypothesis": "tests/test_properties.py",
    "pytest_benchmark": "tests/test_bench.py's timing fixture",
    "matplotlib": "plots and their tests",
    "sklearn": "the demo's test",
    "tqdm": "progress bars",
    "pytorch_metric_learning": "that baseline of the bench",
}
WITHOUT = {
    "hypothesis": ["--ignore=tests/test_properties.py"],
    "pytest_benchmark": ["-o", "addopts="],
    "tqdm": ["--ignore=tests/test_demo.py"],
}


def importable(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:  # its package is not there
        return False


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "PYTHONPATH": path}


def unfit() -> str | None:
    """Why this Python cannot show anything, or None."""
    if importable("torch"):
        import torch

        if not torch.cuda.is_available():
            return f"torch {torch.__version__} of {sys.executable} sees no CUDA device"
    lacking = [name for name in NEEDED if not importable(name)]
    if lacking:
        return (
            f"{sys.executable} cannot import {', '.join(lacking)}; it needs a torch with CUDA, "
            f"{', '.join(NEEDED[1:])}: install them, or name a Python that has them, "
            "make gpu PYTHON=..."
        )
    if os.environ.get("TRITON_INTERPRET") == "1":
        return "TRITON_INTERPRET=1 would run the kernels on the CPU; unset it"
    return None


def sanitizer() -> str | None:
    """The binary of compute-sanitizer, or None."""
    return shutil.which("compute-sanitizer") or shutil.which(
        "compute-sanitizer", path="/usr/local/cuda/bin"
    )


def can_build() -> bool:
    """A compiled module is not there yet and its tools are: the suite then covers it too."""
    tools = all(shutil.which(tool) for tool in ("c++", "cmake", "ninja"))
    built = importable("ms_kernels._cpu") and (importable("ms_kernels._cuda") or not has_nvcc())
    return tools and importable("pybind11") and not built


def has_nvcc() -> bool:
    return shutil.which("nvcc") is not None or Path("/usr/local/cuda/bin/nvcc").exists()


def build_settings() -> dict[str, str]:
    """The CUDA kernels too where nvcc is, for this GPU alone: minutes instead of a quarter hour."""
    import torch

    if not has_nvcc() or not torch.cuda.is_available():
        return {"MSK_CUDA": "OFF"}
    major, minor = torch.cuda.get_device_capability()
    chosen = os.environ.get("CMAKE_CUDA_ARCHITECTURES", f"{major}{minor}-real")
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/local/cuda/bin"])
    return {"MSK_CUDA": "ON", "CMAKE_CUDA_ARCHITECTURES": chosen, "PATH": path}


def steps(quick: bool) -> list[tuple[str, list[str], dict[str, str]]]:
    """(name, command, additions to the environment) in order."""
    python = sys.executable
    without = [flag for name, flags in WITHOUT.items() if not importable(name) for flag in flags]
    pytest = [python, "-m", "pytest", "-q", "-rsx", *without]
    # Most of the time goes to compiling.
    parallel = ["-n", "8"] if importable("xdist") and (os.cpu_count() or 1) >= 8 else []
    gpu_files = [f"tests/{name}.py" for name in GPU_TESTS]
    found: list[tuple[str, list[str], dict[str, str]]] = [
        ("info", [python, "-m", "ms_kernels", "info"], {}),
        ("kernels", [*pytest, *parallel, f"--junitxml={REPORT}", *gpu_files], {}),
        ("suite", [*pytest, *(f"--ignore={file}" for file in gpu_files)], {}),
    ]
    if can_build():
        command = [python, "setup.py", "-q", "build_ext", "--inplace"]
        found.insert(0, ("build", command, build_settings()))
    binary = sanitizer()
    if binary is None:
        print("compute-sanitizer is neither on PATH nor in /usr/local/cuda/bin: left out")
    else:
        # The caching allocator would hide reads past the end of a tensor.
        plain = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        for tool in SANITIZERS:
            command = [binary, "--tool", tool, "--error-exitcode", "1"]
            found.append((tool, [*command, python, "tests/sanitize_kernels.py"], plain))
    bench = [python, "-m", "bench.gpu"]
    found.append(("bench", [*bench, *(["quick"] if quick else [])], {}))
    found.append(("small", [*bench, "small"], {}))
    sizes = ["--sizes", "2048"] if quick else []
    found.append(("family", [python, "-m", "bench.gpu_family", *sizes], {}))
    return found


def figures() -> str:
    """What the tests counted: launches, bytes at the peak."""
    cases = ElementTree.parse(REPORT).iter("testcase")
    return "\n".join(
        f"{case.get('name')}: {counted.get('name')} {counted.get('value')}"
        for case in cases
        for counted in case.iter("property")
    )


def main() -> int:
    chosen = [word for word in sys.argv[1:] if word != "quick"]
    unknown = sorted(set(chosen) - set(STEPS))
    if unknown:
        print(f"prove_gpu: expected quick or steps of {', '.join(STEPS)}, got {', '.join(unknown)}")
        return 2
    reason = unfit()
    if reason is not None:
        print(f"make gpu: {reason}")
        return 2
    for name, what in OPTIONAL.items():
        if not importable(name):
            print(f"{name} cannot be imported: without {what}")
    results = []
    for name, command, additions in steps("quick" in sys.argv[1:]):
        if chosen and name not in chosen:
            continue
        print(f"\n== {name}: {' '.join(command)}", flush=True)
        start = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, env={**environment(), **additions})
        results.append((name, done.returncode, time.monotonic() - start))
        if name == "kernels" and REPORT.exists():
            print(figures())
    print()
    for name, code, seconds in results:
        print(f"{'passed' if code == 0 else f'FAILED ({code})':12} {name}, {seconds:.0f} s")
    return int(any(code for _, code, _ in results))


if __name__ == "__main__":
    sys.exit(main())
