"""The modules for a GPU machine, built beforehand: python -m gpu_proof.carry --python ... (make
gpu-build), and on that machine found and put in their place (make gpu).

A folder of build/gpu is named for a Python, cp312, and holds _cpu, _cuda and a manifest that says
of which sources and for which architectures they are. Modules of another Python cannot be loaded,
those of other sources are not wanted: then they are built there. The bench's peer lies beside them,
for a machine without an index of packages.
"""

import argparse
import hashlib
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench import gpu_sources
from bench.gpu_sources import CARRIED, PACKAGE, ROOT

# Not carried, and of this checkout alone: CMake refuses a tree that was moved.
TREES = ROOT / "build" / f"gpu-tree-{hashlib.sha256(bytes(ROOT)).hexdigest()[:8]}"
PEER, SITE = "pytorch-metric-learning", CARRIED / "site"
GPU_MODULES = "_cuda", "_tape"
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


def build(
    python: str,
    architectures: str,
    into: Path,
    only: Sequence[str] = (),
    cuda: bool = True,
    dry: bool = False,
) -> Path:
    """The modules for that Python, or some; dry: what would run is listed. The folder of it."""
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
    target = ["--target", *only] if only else []
    make = ["cmake", "--build", str(tree), *target, *(["--", "-n"] if dry else [])]
    into.mkdir(parents=True, exist_ok=True)
    for command in (configure, make):
        print("$", " ".join(command), flush=True)
        subprocess.run(command, check=True)
    return tree


def state() -> dict[str, Any]:
    """Of the sources: their digests and, for a machine whose copy has no repository, the commit."""
    digests = {"sources": gpu_sources.built(), "measured": gpu_sources.measured()}
    return {**digests, **gpu_sources.commit()}


def manifest_of(
    python: str, architectures: str, state: dict[str, Any], tree: Path
) -> dict[str, Any]:
    """Of a build: `state` is that before it began, a change during it is none of it."""
    return {
        **python_of(python),
        "architectures": architectures,
        **state,
        "nvcc": nvcc_of(tree),
    }


def nvcc_of(tree: Path) -> str | None:
    """The nvcc that this build took, as cmake/cuda.cmake wrote it down: PATH may have another."""
    path = tree / "cuda" / "tools.txt"
    text = path.read_text() if path.exists() else ""
    release = [line.strip() for line in text.splitlines() if "release" in line]
    return f"{text.split(' nvcc:')[0]}: {release[0]}" if release else None


def refusal(manifest: dict[str, Any], suffix: str) -> str | None:
    """Why a carried build does not serve this Python and these sources, or None."""
    if manifest["suffix"] != suffix:
        return f"it is for {manifest['suffix']}, this Python loads {suffix}"
    return other_sources(manifest["sources"])


def other_sources(of: str | None) -> str | None:
    """Why modules built of these are not wanted, or None."""
    here = gpu_sources.built()
    if of is None:
        return f"nothing says what it was built from (here {here})"
    return None if of == here else f"it was built from other sources ({of}, here {here})"


def place(carried: Path = CARRIED, package: Path = PACKAGE) -> str | None:
    """Copies the carried modules of this Python into the package; says what they are, or None.

    Those of other sources that an earlier call put there are taken away: they would be measured.
    """
    here = python_of(sys.executable)
    for module in package.glob(f"*{here['suffix']}"):
        of = gpu_sources.module_sources(module)
        if of is not None and (why := other_sources(of)):
            print(f"{module} is removed: {why}")
            module.unlink()
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
    gpu_sources.write_note(manifest, package)
    return f"{folder.relative_to(carried.parent)}, {manifest['architectures']}"


def in_package(name: str, package: Path = PACKAGE) -> Path | None:
    """The file of a compiled module that this Python would load."""
    path = package / f"{name}{python_of(sys.executable)['suffix']}"
    return path if path.exists() else None


def unusable(name: str, package: Path = PACKAGE) -> str | None:
    """Why the package's compiled module must not stand for the present sources, or None."""
    path = in_package(name, package)
    if path is None:
        return f"ms_kernels.{name} is not built for this Python"
    why = other_sources(gpu_sources.module_sources(path))
    return None if why is None else f"ms_kernels.{name}: {why}"


def triton_cache(carried: Path = CARRIED) -> Path | None:
    """Triton's compiled kernels, where they were made beforehand.

    Triton writes down where each file lay: elsewhere it would find none and compile anew.
    """
    folder = carried / "triton"
    for path in folder.glob("*/__grp__*"):
        found = json.loads(path.read_text())["child_paths"]
        here = {name: str(path.parent / name) for name in found}
        if found != here:
            path.write_text(json.dumps({"child_paths": here}))
    return folder if folder.is_dir() and any(folder.iterdir()) else None


def compile_kernels(python: str) -> int:
    """Triton's kernels for sm_90, under the stand-in driver, with the Triton of that Python."""
    cache = CARRIED / "triton"
    cache.mkdir(parents=True, exist_ok=True)
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = {**os.environ, "PYTHONPATH": path, "TRITON_CACHE_DIR": str(cache)}
    environment |= {"TRITON_INTERPRET": "0", "OMP_NUM_THREADS": "1"}
    command = [python, "-m", "gpu_proof.kernels_beforehand"]
    return subprocess.run(command, cwd=ROOT, env=environment).returncode


def fetch_peer(python: str) -> None:
    """What the bench compares with; it is Python alone, and what it needs is common."""
    shutil.rmtree(SITE, ignore_errors=True)
    command = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps"]
    command += ["-c", str(ROOT / "constraints.txt"), "--target", str(SITE), PEER]
    print("$", " ".join(command), flush=True)
    if subprocess.run(command).returncode:
        shutil.rmtree(SITE, ignore_errors=True)
        print(f"{PEER} is not carried: that baseline of the bench will be left out")


def peer_site() -> Path | None:
    """Where the carried peer lies, unless this Python has one of its own."""
    name = PEER.replace("-", "_")
    installed = importlib.util.find_spec(name) is not None
    return SITE if (SITE / name).is_dir() and not installed else None


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
        only = GPU_MODULES if has_nvcc else ()
        build(options.python, options.architectures, TREES / "dry", only, has_nvcc, dry=True)
        return 0
    claim = folder / (gpu_sources.NOTE if options.here else "manifest.json")
    claim.unlink(missing_ok=True)  # a build that fails leaves no claim behind, and no old module
    (folder / f"_cuda{found['suffix']}").unlink(missing_ok=True)
    before = state()
    # On the GPU machine seconds count: the kernels of the CPU prove nothing there.
    only = GPU_MODULES if options.here else ()
    tree = build(options.python, options.architectures, folder, only)
    manifest = manifest_of(options.python, options.architectures, before, tree)
    text = json.dumps(manifest, indent=1)
    if options.here:
        gpu_sources.write_note(manifest)
    else:
        claim.write_text(text + "\n")
        fetch_peer(options.python)
    print(f"{folder}: {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
