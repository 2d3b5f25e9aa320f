"""Arrows run one way: which module may import which, and what the compiled module may need."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ms_kernels

PACKAGE = Path(ms_kernels.__file__).parent
CSRC = PACKAGE.parent / "csrc"

# What each module may import of ours; nothing else may.
MAY_IMPORT = {
    "reference": set(),
    "spec": {"checks", "dispatch", "mining_rules", "weighting_rules"},
    "settings": {"checks"},
    "checks": set(),
    "refusals": set(),
    "dispatch": {"settings"},
    "backends.interface": {"reference"},
    "backends.sides": {"backends.interface", "reference", "settings", "spec"},
    "backends.sweep": {"backends.interface", "backends.sides", "mining_rules", "spec"},
    "backends.panels": {
        "backends.interface",
        "backends.sides",
        "backends.sweep",
        "reference",
        "spec",
    },
    "backends.native": {"backends.interface", "reference", "spec"},
    "backends.cpu": {"backends.interface", "backends.native", "reference", "settings", "spec"},
    "backends.triton": {
        "backends.gpu",
        "backends.interface",
        "reference",
        "settings",
        "spec",
        "triton_kernels.launch_family",
        "triton_kernels.launch_gradient",
        "triton_kernels.launch_statistics",
        "triton_kernels.problem",
        "triton_kernels.tiles",
        "weighting_rules",
    },
    "triton_kernels.tiles": set(),
    "triton_kernels.order": set(),
    "triton_kernels.rows": {"triton_kernels.similarity"},
    "triton_kernels.pairs": set(),
    "triton_kernels.similarity": set(),
    "triton_kernels.multi_similarity": set(),
    "triton_kernels.stash": set(),
    "triton_kernels.tile_list": {"triton_kernels.multi_similarity", "triton_kernels.pairs"},
    "triton_kernels.family": {"triton_kernels.multi_similarity"},
    "triton_kernels.triplet": {
        "triton_kernels.multi_similarity",
        "triton_kernels.pairs",
        "triton_kernels.similarity",
    },
    "triton_kernels.family_options": {"mining_rules", "spec", "weighting_rules"},
    "triton_kernels.family_finish": {
        "triton_kernels.family",
        "triton_kernels.multi_similarity",
        "triton_kernels.pairs",
        "triton_kernels.similarity",
    },
    "triton_kernels.launch_family": {
        "mining_rules",
        "spec",
        "triton_kernels.triplet",
        "weighting_rules",
        "triton_kernels.family_finish",
        "triton_kernels.launch_statistics",
        "triton_kernels.problem",
    },
    "triton_kernels.weights": {
        "triton_kernels.triplet",
        "triton_kernels.family",
        "triton_kernels.multi_similarity",
        "triton_kernels.pairs",
    },
    "triton_kernels.positives": {
        "triton_kernels.multi_similarity",
        "triton_kernels.pairs",
        "triton_kernels.similarity",
    },
    "triton_kernels.negatives": {
        "triton_kernels.triplet",
        "triton_kernels.family",
        "triton_kernels.multi_similarity",
        "triton_kernels.pairs",
        "triton_kernels.similarity",
        "triton_kernels.stash",
    },
    "triton_kernels.gradient_sums": {"triton_kernels.similarity"},
    "triton_kernels.gradient": {
        "triton_kernels.gradient_sums",
        "triton_kernels.rows",
        "triton_kernels.similarity",
        "triton_kernels.weights",
    },
    "triton_kernels.gradient_panels": {
        "triton_kernels.gradient_sums",
        "triton_kernels.similarity",
        "triton_kernels.stash",
        "triton_kernels.weights",
    },
    "triton_kernels.problem": {
        "backends.interface",
        "spec",
        "triton_kernels.family_options",
        "triton_kernels.order",
        "triton_kernels.pairs",
        "triton_kernels.rows",
        "triton_kernels.tiles",
    },
    "triton_kernels.launch_statistics": {
        "reference",
        "triton_kernels.problem",
        "triton_kernels.negatives",
        "triton_kernels.positives",
        "triton_kernels.tiles",
    },
    "triton_kernels.launch_gradient": {
        "backends.interface",
        "triton_kernels.gradient",
        "triton_kernels.gradient_panels",
        "triton_kernels.gradient_sums",
        "triton_kernels.problem",
        "triton_kernels.rows",
        "triton_kernels.tile_list",
        "triton_kernels.tiles",
        "triton_kernels.weights",
    },
    "backends.gpu": set(),
    "backends.cuda": {
        "backends.gpu",
        "backends.interface",
        "backends.native",
        "reference",
        "settings",
        "spec",
        "weighting_rules",
    },
    "ops": {"backends.interface", "checks", "dispatch", "reference", "refusals", "spec"},
    "autograd": {"ops", "checks", "reference", "refusals", "spec"},
    "functional": {
        "autograd",
        "backends.sweep",
        "checks",
        "dispatch",
        "histogram",
        "mining_rules",
        "ops",
        "reference",
        "refusals",
        "spec",
        "streaming",
        "weighting_rules",
    },
    "mining": {"backends.sides", "checks", "mining_rules", "ops", "refusals", "spec"},
    "losses": {"functional", "checks", "dispatch", "reference", "spec"},
    "mining_rules": {"checks", "reference"},
    "weighting_rules": {"checks", "reference"},
    "streaming": {
        "autograd",
        "backends.interface",
        "backends.sides",
        "backends.sweep",
        "checks",
        "mining_rules",
        "ops",
        "reference",
        "refusals",
        "spec",
    },
    "histogram": {
        "autograd",
        "backends.sides",
        "backends.sweep",
        "checks",
        "mining_rules",
        "ops",
        "reference",
        "refusals",
        "spec",
        "weighting_rules",
    },
    "pair_losses": {
        "checks",
        "dispatch",
        "functional",
        "histogram",
        "mining_rules",
        "reference",
        "spec",
        "weighting_rules",
    },
    "inspect": {
        "backends.interface",
        "backends.sides",
        "backends.sweep",
        "checks",
        "histogram",
        "losses",
        "mining_rules",
        "ops",
        "pair_losses",
        "refusals",
        "spec",
        "weighting_rules",
    },
    "plot_style": set(),
    "plots": {
        "backends.interface",
        "backends.sides",
        "checks",
        "inspect",
        "mining_rules",
        "plot_style",
        "reference",
        "spec",
        "weighting_rules",
    },
    "command_line": {"checks"},
    "explain": {"", "command_line", "demo", "plots"},
    "demo": {"", "command_line", "demo_plot", "step_cost"},
    "step_cost": {"", "checks", "command_line"},
    "tune": {"backends.triton", "command_line", "tune_trial", "triton_kernels.tiles"},
    "tune_trial": {
        "backends.interface",
        "settings",
        "spec",
        "triton_kernels.gradient",
        "triton_kernels.gradient_panels",
        "triton_kernels.launch_gradient",
        "triton_kernels.launch_statistics",
        "triton_kernels.problem",
        "triton_kernels.rows",
        "triton_kernels.negatives",
        "triton_kernels.positives",
        "triton_kernels.tiles",
    },
    "demo_plot": set(),
    "__main__": {"", "demo", "explain", "tune"},
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
        own = {header.name for header in path.parent.iterdir()}
        assert set(includes(path)) <= {"cmath", "limits", *own}
    if path.parent.name == "cpu":
        assert not any("pybind11" in name or "cuda" in name for name in includes(path))


@pytest.mark.parametrize("path", sorted(CSRC.glob("cuda/*")), ids=lambda p: p.name)
def test_instructions_and_launches_have_one_place(path):
    """What tests/host_gpu stands in for; everything else runs on the CPU unchanged."""
    text = path.read_text()
    if path.name != "ptx.cuh":
        assert "asm" not in text and "__shared__" not in text
    if path.name != "grid_barrier.cuh":
        assert "cooperative_groups" not in text
    if path.name != "launch.cuh":
        assert "<<<" not in text and "cudaLaunch" not in text
    if path.name not in ("launch.cuh", "check.h", "versions.h"):
        assert not any(name.startswith("cuda_") for name in includes(path))


def test_compiled_module_needs_no_torch():
    module = pytest.importorskip("ms_kernels._cpu")
    nm = shutil.which("nm")
    if not nm:
        pytest.skip("nm is not installed")
    symbols = subprocess.run(
        [nm, "-D", "--undefined-only", module.__file__], check=True, capture_output=True, text=True
    ).stdout
    assert "Py" in symbols
    for word in ("at::", "_ZN2at", "c10", "torch"):
        assert word not in symbols


def test_compiled_module_needs_only_system_libraries():
    module = pytest.importorskip("ms_kernels._cpu")
    readelf = shutil.which("readelf")
    if not readelf or not sys.platform.startswith("linux"):
        pytest.skip("readelf is not installed")
    shown = subprocess.run(
        [readelf, "-d", module.__file__], check=True, capture_output=True, text=True
    ).stdout
    needed = {
        line.split("[")[1].split(".so")[0] for line in shown.splitlines() if "(NEEDED)" in line
    }
    allowed = {"libc", "libm", "libstdc++", "libgcc_s", "libgomp", "libomp", "libpthread"}
    assert needed - {name for name in needed if name.startswith("ld-linux")} <= allowed


def pytest_generate_tests(metafunc):
    if "isa" in metafunc.fixturenames:
        every = metafunc.config.getoption("--every-architecture")
        metafunc.parametrize("isa", ["baseline", "avx2", "avx512"] if every else ["avx512"])


def cmake_flags(isa):
    """The flags that CMakeLists.txt gives to the kernels of an instruction set."""
    text = (CSRC.parent / "CMakeLists.txt").read_text()
    common = re.search(r"msk_flags INTERFACE\s+(-O3[^)]*)\)", text)
    own = re.search(rf"set\({isa} ([^)]*)\)", text)
    return [*common[1].split(), *(own[1].split() if own else [])]


# Every machine runs the baseline build, so its code may be anybody's; of the same sources the other
# two have the same names, and `make compile` looks at both.
@pytest.mark.slow
def test_builds_for_different_machines_share_no_code(tmp_path, isa):
    """A function that the linker merges across builds could be one that the machine cannot run."""
    compiler, nm = shutil.which("c++"), shutil.which("nm")
    if not compiler or not nm:
        pytest.skip("c++ and nm are needed")
    flags = cmake_flags(isa)
    assert "-ffp-contract=off" in flags and (isa == "baseline" or f"-m{isa}"[:6] in str(flags))
    nothing = [compiler, *flags, "-x", "c++", "-fsyntax-only", os.devnull]
    if subprocess.run(nothing, capture_output=True).returncode:
        pytest.skip(f"the compiler has no {isa}")
    target = tmp_path / "kernels.o"
    # Less is inlined than in the module, so nothing is merged there that is not merged here.
    flags = [flag.replace("-O3", "-O1") for flag in flags]
    flags += ["-std=c++17", "-fPIC", "-fvisibility=hidden", "-fopenmp", "-Wno-psabi"]
    source = CSRC / "cpu" / "kernels.cpp"
    command = [compiler, *flags, f"-DMSK_ISA={isa}", "-c", source, "-o", target]
    subprocess.run(command, check=True)
    symbols = subprocess.run([nm, "-C", target], check=True, capture_output=True, text=True).stdout
    assert f" T msk::{isa}::kernels()" in symbols
    mergeable = [line for line in symbols.splitlines() if " W " in line or " V " in line]
    ours = [line for line in mergeable if f"msk::{isa}::" not in line]
    # The unwinder's own pointer, the same in every build.
    assert [line for line in ours if "__gxx_personality" not in line] == []
