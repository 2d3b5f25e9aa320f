"""Arrows run one way: which module may import which, and what the compiled module may need."""

import ast
import functools
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import ms_kernels
from ms_kernels.backends import dispatch

PACKAGE = Path(ms_kernels.__file__).parent
CSRC = PACKAGE.parent / "csrc"
TESTS = PACKAGE.parent / "tests"

# From the ground up: what is in a room may import its own room and those before it.
ROOMS = (
    "ground",
    "rules",
    "backends",
    "engine",
    "api",
    "retrieval",
    "distributed",
    "compat",
    "tools",
)
GROUND = ("checks", "once", "reference", "settings")
# Chosen while running, so that each can be left out: nobody imports one, and none another.
BACKENDS = tuple(dispatch.MODULES)
# The tuner times the kernels themselves.
TUNER = ("tools.tune", "tools.tune_trial")


@functools.cache
def modules():
    """{name: path} of all that the package has, the name of a package that of its folder."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(part for part in parts if part != "__init__")] = path
    return found


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@functools.cache
def ours(path):
    """Modules of ours that a file imports; a package that is only named on the way is none."""
    known = modules()
    found = {full.removeprefix("ms_kernels").lstrip(".") for full in imports_of(path)}
    found = {name for name in found if name in known}
    return {name for name in found if not any(lies_in(other, name) for other in found)}


def lies_in(module, package):
    return module != package and (not package or module.startswith(f"{package}."))


def room(module):
    first = module.split(".")[0]
    return "ground" if first in GROUND else first


def backend_of(module):
    parts = module.split(".")
    return parts[1] if parts[0] == "backends" and parts[1:2] and parts[1] in BACKENDS else None


def refusal(importer, imported):
    """Why a module must not import another; None if it may."""
    if importer in ("", "__main__"):  # what users see, and what they type
        return None
    if imported in ("", "__main__"):
        return None if room(importer) == "tools" else "only the tools are users of the package"
    if ROOMS.index(room(importer)) < ROOMS.index(room(imported)):
        return f"{room(imported)} lies above {room(importer)}"
    chosen = backend_of(imported)
    asks = importer == "backends.dispatch" or importer in TUNER
    if chosen not in (None, backend_of(importer)) and not asks:
        return f"{chosen} is chosen while running, by backends/dispatch.py"
    return None


def test_every_module_lies_in_a_room():
    assert {room(name) for name in modules()} == {*ROOMS, "", "__main__"}


@pytest.mark.parametrize("name", modules())
def test_imports_go_one_way(name):
    refusals = {other: refusal(name, other) for other in ours(modules()[name])}
    assert {other: why for other, why in refusals.items() if why} == {}


def test_no_module_imports_itself_by_way_of_others():
    arrows = {name: ours(path) for name, path in modules().items() if name}
    while leaves := [name for name, to in arrows.items() if not to & arrows.keys()]:
        for name in leaves:
            del arrows[name]
    assert arrows == {}


def floors_of(arrows):
    """{module or folder: its floor}, one above the highest that it imports."""

    @functools.cache
    def floor(name):
        return 1 + max(map(floor, arrows[name] - {name}), default=0)

    return {name: floor(name) for name in arrows}


def test_the_house_has_eleven_floors():
    """Folders are one each, those of the backends too: whoever reads on need not go deeper."""

    def folder(name):
        return ".".join(name.split(".")[: 2 if name.startswith("backends.") else 1])

    arrows = {folder(name): set() for name in modules()}
    for name, path in modules().items():
        arrows[folder(name)] |= {folder(other) for other in ours(path)}
    floors = floors_of(arrows)
    assert max(floors.values()) <= 11, floors


@pytest.mark.parametrize(
    ("importer", "imported"),
    [
        ("checks", "rules.spec"),
        ("rules.spec", "backends.dispatch"),
        ("backends.panels", "engine.ops"),
        ("backends.cuda", "backends.triton.tiles"),
        ("engine.ops", "backends.cpu"),
        ("api.functional", ""),
    ],
)
def test_an_arrow_the_wrong_way_is_refused(importer, imported):
    assert refusal(importer, imported)


def test_only_the_backend_touches_the_compiled_module():
    users = [name for name, path in modules().items() if "ms_kernels._cpu" in path.read_text()]
    assert users == ["__main__", "backends.cpu", "backends.cpu_call"]


@pytest.mark.parametrize("path", sorted(TESTS.rglob("*.py")), ids=lambda p: p.name)
def test_no_test_module_is_imported(path):
    """What two of them need lies in a module of its own, so that each can be moved or deleted."""
    modules = {other.stem for other in TESTS.rglob("test_*.py")}
    assert not {full.split(".")[0] for full in imports_of(path)} & modules


def includes(path):
    for line in path.read_text().splitlines():
        if line.startswith("#include"):
            yield line.split(maxsplit=1)[1].strip('"<>')


@pytest.mark.parametrize("path", sorted(CSRC.rglob("*.[hc]*")), ids=lambda p: p.name)
def test_cpp_knows_no_framework(path):
    text = path.read_text()
    for word in ("torch/", "ATen", "c10"):
        assert word not in text
    if path.parent.name == "rules":
        own = {header.name for header in path.parent.iterdir()}
        assert set(includes(path)) <= {"cmath", "limits", *own}
    if path.parent.name == "cpu":
        assert not any("pybind11" in name or "cuda" in name for name in includes(path))


def test_rules_are_told_by_their_class():
    """Not by ==: the compiler of torch 2.6 takes rules of two classes for equal, in silence."""
    compares = re.compile(r"[=!]= (?:NO_MINING|\w*Mining\(|[A-Z]\w+\(\))")
    found = {name: compares.findall(path.read_text()) for name, path in modules().items()}
    assert {name: lines for name, lines in found.items() if lines} == {}
    assert compares.search("if chosen.mining == NO_MINING:") and compares.search("m != NoMining()")


def test_infinity_and_nan_have_one_name_each():
    """kInfinity and kNaN of rules/infinity.h, whatever they stand for."""
    for path in CSRC.rglob("*.[hc]*"):
        if path.name != "infinity.h":
            text = path.read_text()
            assert "quiet_NaN" not in text and ">::infinity()" not in text, path.name


# From the ground up: a folder of csrc/cuda includes its own headers and those of the folders under
# it. Neither path knows the other, and what the host compiles knows no kernel.
FOLDERS = {
    "core": set(),
    "pairs": {"core"},
    "batch": {"core", "pairs"},
    "small": {"core", "pairs"},
    "tiled": {"core", "pairs"},
    "host": {"core", "pairs"},
    "cuda": {"host"},  # instance.cu, and the path that it is compiled for
}
CUDA_FILES = [path for path in sorted(CSRC.glob("cuda/**/*")) if path.is_file()]


@pytest.mark.parametrize("path", CUDA_FILES, ids=lambda p: p.name)
def test_folders_of_the_cuda_kernels_go_one_way(path):
    folder = path.parent.name
    known = {name.split("/")[1] for name in includes(path) if name.startswith("cuda/")}
    assert known <= FOLDERS[folder] | {folder}


@pytest.mark.parametrize("path", CUDA_FILES, ids=lambda p: p.name)
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
