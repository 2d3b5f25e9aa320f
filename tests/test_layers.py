"""Arrows run one way: which module may import which, and what the compiled module may need."""

import ast
import shutil
import subprocess
from pathlib import Path

import pytest

import ms_kernels

PACKAGE = Path(ms_kernels.__file__).parent
CSRC = PACKAGE.parent / "csrc"

# What each module may import of ours; nothing else may.
MAY_IMPORT = {
    "reference": set(),
    "spec": set(),
    "settings": set(),
    "checks": set(),
    "dispatch": set(),
    "backends.interface": {"reference"},
    "backends.panels": {"backends.interface", "reference", "settings", "spec"},
    "backends.cpu": {"backends.interface", "reference", "settings", "spec"},
    "backends.cuda": {"backends.interface", "reference", "settings", "spec"},
    "ops": {"dispatch", "backends.interface", "reference", "spec"},
    "autograd": {"ops", "checks", "reference", "spec"},
    "functional": {"autograd", "ops", "dispatch", "checks", "reference", "spec"},
    "mining": {"backends.interface", "backends.panels", "checks", "spec"},
    "losses": {"functional", "checks", "dispatch", "reference", "spec"},
    "demo": {"", "demo_plot", "step_cost"},
    "step_cost": {""},
    "demo_plot": set(),
    "__main__": {"", "demo"},
}


def modules():
    paths = sorted(PACKAGE.rglob("*.py"))
    names = [".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in paths]
    return [(n, path) for n, path in zip(names, paths, strict=True) if not n.endswith("__init__")]


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(path):
    names = {name for name, _ in modules()} | {""}
    for full in imports_of(path):
        if full.split(".")[0] == "ms_kernels":
            short = full.removeprefix("ms_kernels").lstrip(".")
            if short in names:
                yield short


def test_every_module_has_its_place():
    assert {name for name, _ in modules()} == set(MAY_IMPORT)


@pytest.mark.parametrize(("name", "path"), modules(), ids=lambda v: v if isinstance(v, str) else "")
def test_imports_go_one_way(name, path):
    extra = set(ours(path)) - MAY_IMPORT[name]
    if MAY_IMPORT[name] and "" not in MAY_IMPORT[name]:
        extra -= {""}  # "from ms_kernels import ops" names the package on its way
    assert not extra, f"{name} must not import {extra}"


def test_only_the_backend_touches_the_compiled_module():
    users = [name for name, path in modules() if "ms_kernels._cpu" in path.read_text()]
    assert users == ["__main__", "backends.cpu"] or users == ["backends.cpu"]


def includes(path):
    for line in path.read_text().splitlines():
        if line.startswith("#include"):
            yield line.split(maxsplit=1)[1].strip('"<>')


@pytest.mark.parametrize("path", sorted(CSRC.rglob("*.[hc]*")), ids=lambda p: p.name)
def test_cpp_knows_no_framework(path):
    text = path.read_text()
    for word in ("torch/", "ATen", "c10"):
        assert word not in text
    if path.parent.name == "math":
        assert set(includes(path)) <= {"cmath", "host_device.h", "softplus.h"}
    if path.parent.name == "cpu":
        assert not any("pybind11" in name or "cuda" in name for name in includes(path))


@pytest.mark.parametrize("path", sorted(CSRC.glob("cuda/*")), ids=lambda p: p.name)
def test_instructions_and_launches_have_one_place(path):
    """What tests/host_gpu stands in for; everything else runs on the CPU unchanged."""
    text = path.read_text()
    if path.name != "ptx.cuh":
        assert "asm" not in text and "__shared__" not in text
    if path.name != "launch.cuh":
        assert "<<<" not in text and "cudaLaunch" not in text and "cooperative_groups" not in text
    if path.name not in ("launch.cuh", "check.h"):
        assert not any(name.startswith("cuda_") for name in includes(path))


def test_compiled_module_needs_no_torch():
    module = pytest.importorskip("ms_kernels._cpu")
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", module.__file__], capture_output=True, text=True
    )
    if symbols.returncode:
        pytest.skip("nm is not installed")
    for word in ("at::", "_ZN2at", "c10", "torch"):
        assert word not in symbols.stdout


def test_builds_for_different_machines_share_no_code(tmp_path):
    """A function that the linker merges across builds could be one that the machine cannot run."""
    compiler, nm = shutil.which("c++"), shutil.which("nm")
    if not compiler or not nm:
        pytest.skip("c++ and nm are needed")
    target = tmp_path / "kernels.o"
    flags = ["-std=c++17", "-O3", "-fopenmp", "-Wno-psabi", "-DMSK_ISA=baseline"]
    command = [compiler, *flags, "-c", CSRC / "cpu" / "kernels.cpp", "-o", target]
    subprocess.run(command, check=True)
    symbols = subprocess.run([nm, "-C", target], check=True, capture_output=True, text=True).stdout
    assert " T msk::baseline::kernels()" in symbols
    mergeable = [line for line in symbols.splitlines() if " W " in line or " V " in line]
    ours = [line for line in mergeable if "msk::baseline::" not in line]
    # The unwinder's own pointer, the same in every build.
    assert [line for line in ours if "__gxx_personality" not in line] == []
