"""What is built where nvcc is old, broken or one of several: by shims, nothing is compiled."""

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CMAKE, NINJA, NVCC = (shutil.which(name) for name in ("cmake", "ninja", "nvcc"))

pytestmark = [
    pytest.mark.skipif(None in (CMAKE, NINJA), reason="cmake and ninja are not installed"),
    pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler is installed"),
]
OF_13 = (75, 80, 86, 87, 88, 89, 90, 100, 103, 110, 120, 121)
OF_12_4 = (50, 52, 60, 61, 70, 72, 75, 80, 86, 87, 89, 90)
OF_11_1 = (52, 60, 61, 70, 72, 75, 80, 86)
OF_10 = (35, 50, 60, 70, 75)


def program(path, body):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def nvcc(path, known=OF_13, otherwise="echo 'shim: no such architecture' >&2; exit 1"):
    """One that knows these architectures; `otherwise`: what it does when it is to compile."""
    cubins, ptx = ("\\n".join(f"{kind}_{n}" for n in known) for kind in ("sm", "compute"))
    return program(
        path,
        f"case $1 in\n--list-gpu-code) printf '{cubins}\\n'; exit;;\n"
        f"--list-gpu-arch) printf '{ptx}\\n'; exit;;\n"
        f"--version) echo shim; exit;;\nesac\n{otherwise}",
    )


def nvidia_smi(folder, told, code=0):
    return program(folder / "nvidia-smi", f"printf '{told}\\n'; exit {code}")


def evaluate(tmp_path, body, **environment):
    """What a CMake script prints that calls the functions of cmake/nvcc.cmake."""
    script = tmp_path / "script.cmake"
    needs = f'cmake_minimum_required(VERSION 3.21)\ninclude("{ROOT}/cmake/nvcc.cmake")'
    script.write_text(f"{needs}\n{body}\n")
    named = ("CUDACXX", "CUDA_HOME", "CUDA_PATH")
    clean = {name: value for name, value in os.environ.items() if name not in named}
    command = [CMAKE, "-P", script]
    run = subprocess.run(command, capture_output=True, text=True, env={**clean, **environment})
    assert run.returncode == 0, run.stderr
    return run.stderr.strip()


@pytest.fixture
def places(tmp_path):
    """An nvcc wherever one may be."""
    for name in ("named", "home", "path", "on_path", "usual"):
        nvcc(tmp_path / name / "bin" / "nvcc")
    return tmp_path


def find_nvcc(places, on_path=True, **environment):
    found = evaluate(
        places,
        f'msk_find_nvcc(found {places}/usual/bin)\nmessage("${{found}}|${{found_note}}")',
        **{"PATH": f"{places}/on_path/bin" if on_path else str(places)} | environment,
    )
    return found.replace(str(places), "").split("|")


def test_the_nvcc_that_is_named_wins(places):
    """CUDACXX, then CUDA_HOME, CUDA_PATH, then PATH, then the usual places."""
    named = {
        "CUDACXX": f"{places}/named/bin/nvcc",
        "CUDA_HOME": f"{places}/home",
        "CUDA_PATH": f"{places}/path",
    }
    for folder in ("named", "home", "path", "on_path"):
        assert find_nvcc(places, **named) == [f"/{folder}/bin/nvcc", ""]
        named.pop(next(iter(named), None), None)
    assert find_nvcc(places, on_path=False) == ["/usual/bin/nvcc", ""]
    # A name is looked for on PATH; a toolkit without a compiler is no toolkit.
    assert find_nvcc(places, CUDACXX="nvcc")[0] == "/on_path/bin/nvcc"
    (places / "runtime_only").mkdir()
    assert find_nvcc(places, CUDA_HOME=f"{places}/runtime_only")[0] == "/on_path/bin/nvcc"


def test_an_nvcc_that_is_not_there_is_named(places):
    found, note = find_nvcc(places, CUDACXX=f"{places}/nowhere/nvcc")
    assert found == "" and note == "CUDACXX=/nowhere/nvcc names no program"
    shutil.rmtree(places / "usual")
    found, note = find_nvcc(places, on_path=False)
    assert found == "" and "not found by CUDACXX, CUDA_HOME, CUDA_PATH, on PATH or in" in note


@pytest.mark.parametrize(
    ("known", "gpus", "chosen"),
    [
        # Without a GPU: sm_80 serves 8.6 and 8.9, PTX what comes after the last cubin.
        (OF_13, "", "80-real;90-real;90-virtual"),
        (OF_12_4, "", "80-real;90-real;90-virtual"),
        (OF_11_1, "", "80-real;80-virtual"),
        # With one, its own.
        (OF_13, "90", "90-real"),
        (OF_13, "100", "100-real"),
        (OF_13, "80;90", "80-real;90-real"),
        (OF_13, "75;86", "86-real"),
        # One that this nvcc does not know: an earlier minor, else PTX.
        (OF_11_1, "89", "86-real"),
        (OF_12_4, "100", "90-virtual"),
        (OF_12_4, "120", "90-virtual"),
        (OF_11_1, "90", "86-virtual"),
    ],
)
def test_architectures(tmp_path, known, gpus, chosen):
    compiler = nvcc(tmp_path / "nvcc", known)
    body = f'msk_architectures("{compiler}" "{gpus}" found)\nmessage("${{found}}")'
    assert evaluate(tmp_path, body) == chosen


def test_what_cannot_be_built_is_named(tmp_path):
    body = 'msk_architectures("{}" "{}" found)\nmessage("${{found}}|${{found_note}}")'
    old = nvcc(tmp_path / "old", OF_10)
    reason = evaluate(tmp_path, body.format(old, "90"))
    assert reason.startswith("|") and "old does not compile for sm_80" in reason
    assert "70, 75" in reason and "CUDACXX=" in reason
    silent = program(tmp_path / "silent", "exit 1")
    assert "it knows: no list of them" in evaluate(tmp_path, body.format(silent, ""))
    reason = evaluate(tmp_path, body.format(nvcc(tmp_path / "nvcc"), "61;75"))
    assert reason.startswith("|") and "61, 75" in reason and "CMAKE_CUDA_ARCHITECTURES" in reason


@pytest.mark.parametrize(
    ("told", "code", "gpus"),
    [
        ("9.0", 0, "90"),
        ("8.6\\n8.6\\n12.0", 0, "86;120"),
        ("NVIDIA-SMI has failed: version 580.65", 9, ""),
        ('Field "compute_cap" is not a valid field to query.', 2, ""),
        ("[N/A]", 0, ""),
    ],
)
def test_gpus_of_this_machine(tmp_path, told, code, gpus):
    nvidia_smi(tmp_path, told, code)
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    assert evaluate(tmp_path, 'msk_gpus(found)\nmessage("${found}")', PATH=path) == gpus


class Build:
    """One folder, configured again and again: only the CUDA part is new each time."""

    def __init__(self, folder):
        self.folder = folder
        suffix = sysconfig.get_config_var("EXT_SUFFIX")
        self.module = folder / "out" / f"_cuda{suffix}"
        self.module.parent.mkdir()
        nvidia_smi(folder / "bin", "no GPU", 9)

    def configure(self, compiler, mode, *more, **environment):
        """Return code, output."""
        path = f"{self.folder}/bin{os.pathsep}{os.environ['PATH']}"
        return self.run(
            *(CMAKE, "-S", ROOT, "-B", self.folder, "-G", "Ninja", f"-DMSK_CUDA={mode}"),
            *(f"-DPython_EXECUTABLE={sys.executable}", f"-DMSK_OUTPUT={self.module.parent}", *more),
            env={**os.environ, "PATH": path, "CUDACXX": str(compiler), **environment},
        )

    def build(self):
        """What the target of the CUDA module does, without the CPU module before it."""
        return self.run(CMAKE, "-P", self.folder / "build_cuda.cmake")

    @staticmethod
    def run(*command, env=None):
        run = subprocess.run(command, capture_output=True, text=True, env=env)
        return run.returncode, " ".join((run.stdout + run.stderr).split())

    def targets(self):
        listed = subprocess.run(
            [NINJA, "-C", self.folder, "-t", "targets", "all"], capture_output=True, text=True
        )
        return {line.partition(":")[0] for line in listed.stdout.splitlines()}


@pytest.fixture(scope="module")
def outer(tmp_path_factory):
    pytest.importorskip("pybind11")
    return Build(tmp_path_factory.mktemp("build"))


BROKEN = {
    "too old": (OF_10, "does not compile for sm_80"),
    "fails its check": (OF_13, "fails on a trivial kernel for 80-real;90-real;90-virtual"),
}


@pytest.mark.parametrize("fault", [*BROKEN, "is not there"])
def test_without_a_good_nvcc_the_rest_is_built(outer, tmp_path, fault):
    compiler, reason = tmp_path / "nvcc", "names no program"
    if fault in BROKEN:
        known, reason = BROKEN[fault]
        nvcc(compiler, known)
    outer.module.write_text("of an earlier build")
    code, told = outer.configure(compiler, "AUTO")
    assert code == 0 and "CMake Warning" in told, told
    assert reason in told and "The CUDA kernels are left out, the rest is built" in told
    assert "CUDACXX=/path/to/nvcc" in told and "MSK_CUDA=OFF" in told
    assert "_cpu" in outer.targets() and "_cuda" not in outer.targets()
    assert not outer.module.exists()
    code, told = outer.configure(compiler, "ON")
    assert code != 0 and "MSK_CUDA=ON, but" in told and reason in told


def test_a_host_compiler_that_is_too_new_is_told(outer, tmp_path):
    says = "#error -- unsupported GNU version! gcc versions later than 11 are not supported!"
    compiler = nvcc(tmp_path / "nvcc", OF_13, f"echo '{says}' >&2; exit 1")
    code, told = outer.configure(compiler, "AUTO")
    assert code == 0 and says in told and "CUDAHOSTCXX=" in told


def test_an_unknown_mode_is_refused(outer):
    code, told = outer.configure("nvcc", "yes")
    assert code != 0 and "MSK_CUDA: expected AUTO, ON or OFF, got yes" in told


@pytest.mark.skipif(NVCC is None, reason="nvcc is not installed")
def test_kernels_that_fail_leave_the_rest(outer, tmp_path):
    """The check of nvcc is real, the kernels fail: with sm_100, as if it were older, or anyhow."""
    refuses = 'case "$*" in *csrc/cuda*|*sm_100*) echo "shim: refused" >&2; exit 1;; esac'
    compiler = nvcc(tmp_path / "nvcc", OF_12_4, f'{refuses}\nexec "{NVCC}" "$@"')
    code, told = outer.configure(compiler, "AUTO", "-DCMAKE_CUDA_ARCHITECTURES=100-real")
    assert (
        code == 0 and "fails on a trivial kernel for 100-real" in told and "shim: refused" in told
    )

    only = {"CUDAARCHS": "90-real"}
    code, told = outer.configure(compiler, "AUTO", "-UCMAKE_CUDA_ARCHITECTURES", **only)
    assert code == 0 and "for 90-real" in told, told
    assert {"_cpu", "_cuda", "cuda_after_cpu"} <= outer.targets()
    outer.module.write_text("of an earlier build")
    code, told = outer.build()
    assert "Compiling the CUDA kernels for 90-real, about" in told
    assert code == 0 and "failed on the kernels" in told and "the rest is built" in told, told
    assert not outer.module.exists()

    code, told = outer.configure(compiler, "ON", **only)
    assert code == 0, told
    code, told = outer.build()
    assert code != 0 and "MSK_CUDA=ON, but" in told and "failed on the kernels" in told


def test_an_editable_install_has_every_module_of_the_build(tmp_path):
    """setuptools knows one of them; what CMake makes beside it comes along."""
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    names = [f"{name}{suffix}" for name in ("_cpu", "_cuda", "_tape")]
    makes = " ".join(f'"$into/{name}"' for name in names)
    program(
        tmp_path / "bin" / "cmake",
        'for a in "$@"; do case $a in -DMSK_OUTPUT=*) into=${a#-DMSK_OUTPUT=};'
        f' mkdir -p "$into"; touch {makes};; esac; done',
    )
    project = tmp_path / "project"
    (project / "ms_kernels").mkdir(parents=True)
    shutil.copy(ROOT / "setup.py", project)
    environment = {**os.environ, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    environment.pop("MS_KERNELS_SKIP_BUILD", None)
    command = [sys.executable, "setup.py", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert sorted(path.name for path in (project / "ms_kernels").iterdir()) == names
