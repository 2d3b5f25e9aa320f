"""The modules for a GPU machine, built beforehand: python -m gpu_proof.carry --python ... (make
gpu-build), and on that machine found and put in their place (make gpu).

A folder of build/gpu is named for a Python, cp312, and holds _cpu, _cuda and a manifest that says
of which sources and for which architectures they are. Modules of another Python cannot be loaded,
those of other sources are not wanted: then they are built there.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "ms_kernels"
CARRIED = ROOT / "build" / "gpu"
# Not carried, and of this checkout alone: CMake refuses a tree that was moved.
TREES = ROOT / "build" / f"gpu-tree-{hashlib.sha256(bytes(ROOT)).hexdigest()[:8]}"
ASK = (
    "import json, sys, sysconfig; v = sys.version_info; print(json.dumps({"
    "'tag': f'cp{v[0]}{v[1]}', 'suffix': sysconfig.get_config_var('EXT_SUFFIX')}))"
)


def python_of(executable: str) -> dict[str, str]:
    """Tag and suffix of the modules that a Python loads."""
    done = subprocess.run([executable, "-c", ASK], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"gpu-build: {executable} does not run: {done.stderr.strip()[-300:]}")
    found: dict[str, str] = json.loads(done.stdout)
    return found


def sources() -> str:
    """A digest of what the modules are built from."""
    paths = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]
    paths += [path for path in (ROOT / "cmake").rglob("*") if path.is_file()]
    paths.append(ROOT / "CMakeLists.txt")
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(path.read_bytes())
    return found.hexdigest()[:12]


def build(
    python: str,
    architectures: str,
    into: Path,
    only: str = "",
    cuda: bool = True,
    dry: bool = False,
) -> None:
    """The modules for that Python, or one; dry: configured, and what would run is listed."""
    tag = python_of(python)["tag"]
    tree = TREES / f"{tag}-{architectures.replace(';', '_')}"
    configure = [
        *("cmake", "-S", str(ROOT), "-B", str(tree), "-G", "Ninja"),
        f"-DMSK_OUTPUT={into}",
        f"-DPython_EXECUTABLE={python}",
        f"-DMSK_CUDA={'ON' if cuda else 'OFF'}",
        f"-DCMAKE_CUDA_ARCHITECTURES={architectures}",
        "-DCMAKE_BUILD_TYPE=Release",
    ]
    target = ["--target", only] if only else []
    make = ["cmake", "--build", str(tree), *target, *(["--", "-n"] if dry else [])]
    into.mkdir(parents=True, exist_ok=True)
    for command in (configure, make):
        print("$", " ".join(command), flush=True)
        subprocess.run(command, check=True)


def manifest_of(python: str, architectures: str) -> dict[str, Any]:
    nvcc = shutil.which("nvcc") or "/usr/local/cuda/bin/nvcc"
    shown = subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout
    release = [line for line in shown.splitlines() if "release" in line]
    return {
        **python_of(python),
        "architectures": architectures,
        "sources": sources(),
        "nvcc": release[0].strip() if release else None,
    }


def refusal(manifest: dict[str, Any], suffix: str) -> str | None:
    """Why a carried build does not serve this Python and these sources, or None."""
    if manifest["suffix"] != suffix:
        return f"it is for {manifest['suffix']}, this Python loads {suffix}"
    if manifest["sources"] != sources():
        return f"it was built from other sources ({manifest['sources']}, here {sources()})"
    return None


def place(carried: Path = CARRIED, package: Path = PACKAGE) -> str | None:
    """Copies the carried modules of this Python into the package; says what they are, or None."""
    here = python_of(sys.executable)
    folder = carried / here["tag"]
    path = folder / "manifest.json"
    if not path.exists():
        return None
    manifest = json.loads(path.read_text())
    why = refusal(manifest, here["suffix"])
    if why is not None:
        print(f"{folder} is not used: {why}")
        return None
    for module in folder.glob(f"*{manifest['suffix']}"):
        target = package / module.name
        if not target.exists() or target.read_bytes() != module.read_bytes():
            made = target.with_suffix(".part")
            shutil.copyfile(module, made)
            made.rename(target)  # a process that has the old one mapped keeps it
    return f"{folder.relative_to(carried.parent)}, {manifest['architectures']}"


def in_package(name: str, package: Path = PACKAGE) -> Path | None:
    """The file of a compiled module that this Python would load."""
    path = package / f"{name}{python_of(sys.executable)['suffix']}"
    return path if path.exists() else None


def triton_cache() -> Path | None:
    """Triton's compiled kernels, where they were made beforehand."""
    path = CARRIED / "triton"
    return path if path.is_dir() and any(path.iterdir()) else None


def compile_kernels(python: str) -> int:
    """Triton's kernels for sm_90, under the stand-in driver, with the Triton of that Python."""
    cache = CARRIED / "triton"
    cache.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache)}
    environment |= {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "gpu_proof.kernels_beforehand"]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu_proof.carry", description=__doc__)
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--architectures", default="90-real", help="as CMake names them")
    parser.add_argument("--here", action="store_true", help="into the package, not into build/gpu")
    parser.add_argument("--triton", action="store_true", help="Triton's kernels, not the modules")
    parser.add_argument("--dry", action="store_true", help="configure, and list what would run")
    options = parser.parse_args(arguments)
    found = python_of(options.python)
    if subprocess.run([options.python, "-c", "import pybind11"], capture_output=True).returncode:
        raise SystemExit(f"gpu-build: {options.python} cannot import pybind11: install it there")
    folder = PACKAGE if options.here else CARRIED / found["tag"]
    if options.triton:
        return compile_kernels(options.python)
    if options.dry:
        has_nvcc = shutil.which("nvcc") is not None
        only = "_cuda" if has_nvcc else ""
        build(options.python, options.architectures, TREES / "dry", only, has_nvcc, dry=True)
        return 0
    manifest = folder / "manifest.json"
    if not options.here:
        manifest.unlink(missing_ok=True)  # a build that fails leaves no claim behind
    # On the GPU machine seconds count: the kernels of the CPU prove nothing there.
    build(options.python, options.architectures, folder, "_cuda" if options.here else "")
    if not options.here:
        text = json.dumps(manifest_of(options.python, options.architectures), indent=1)
        manifest.write_text(text + "\n")
        print(f"{folder}: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
