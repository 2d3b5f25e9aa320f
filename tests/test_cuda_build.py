"""nvcc's view of the CUDA kernels, without a GPU: every architecture builds, nothing spills,
registers and shared memory stay within tests/ptxas.json, products run on the tensor cores."""

import importlib.util
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from ms_kernels.backends import cuda

CSRC = Path(__file__).parents[1] / "csrc"
BOUNDS = json.loads((Path(__file__).parent / "ptxas.json").read_text())
INSTANCES = [path.stem for path in sorted((CSRC / "cuda").glob("*.cu"))]
NVCC, PTXAS = shutil.which("nvcc"), shutil.which("ptxas")

# What must be in the kernels of each operand type, on either path.
OF_HALF = ["LDSM.16.M88.4", "LDSM.16.MT88.4", "LDGSTS"]
OF_TYPE = {
    "float16": ["HMMA.16816.F32 ", *OF_HALF],
    "bfloat16": ["HMMA.16816.F32.BF16", *OF_HALF],
    "rounded": ["HMMA.16816.F32.BF16", *OF_HALF],
    "float32": ["HMMA.1688.F32.TF32", "LDSM.16.M88.4", "LDGSTS"],
    "tf32": ["HMMA.1688.F32.TF32", "LDSM.16.M88.4", "LDGSTS"],
    "float64": ["DMMA", "LDGSTS"],
}
INSTRUCTIONS = {
    f"{path}_{t}": wanted for path in ("batch", "tiled") for t, wanted in OF_TYPE.items()
}


# sm_86 and sm_89 take the PTX of compute_80 here: no kernel asks for which of them it is built,
# and the front end, most of the time, runs once for the three of them.
VIRTUAL = {"86": "80", "89": "80"}


def compile_all(instance, folder):
    """{architecture: (cubin, ptxas' report)} of one instance."""
    found = {}
    for architecture in BOUNDS["architectures"]:
        virtual = VIRTUAL.get(architecture, architecture)
        ptx = folder / f"{virtual}.ptx"
        if not ptx.exists():
            command = [NVCC, "-std=c++17", "-O3", f"-I{CSRC}", f"-arch=compute_{virtual}", "-ptx"]
            command += ["-Werror", "all-warnings", "-o", ptx]
            run([*command, CSRC / "cuda" / f"{instance}.cu"])
        cubin = folder / f"{architecture}.cubin"
        report = run([PTXAS, "-O3", "-v", f"-arch=sm_{architecture}", "-o", cubin, ptx])
        found[architecture] = cubin, report
    return found


def run(command):
    made = subprocess.run(command, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout + made.stderr


@pytest.mark.skipif(None in (NVCC, PTXAS), reason="nvcc is not installed")
@pytest.mark.slow
@pytest.mark.parametrize("instance", INSTANCES)
def test_every_architecture_builds_without_spills(instance, tmp_path):
    compiled = compile_all(instance, tmp_path)
    for architecture, (_, report) in compiled.items():
        spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
        assert spills and set(spills) == {"0"}, f"{instance} spills for sm_{architecture}"
        registers = max(int(n) for n in re.findall(r"Used (\d+) registers", report))
        assert registers <= BOUNDS["registers"][instance], f"{instance}: {registers} registers"
        assert "bytes smem" not in report
    found = disassembler()
    if found is None:
        pytest.skip("nvdisasm is not installed: it comes with CUDA or with the triton package")
    listing = run([found, compiled[BOUNDS["architectures"][0]][0]])
    for instruction in INSTRUCTIONS[instance]:
        assert instruction in listing, f"{instance} has no {instruction}"


def disassembler():
    if shutil.which("nvdisasm"):
        return shutil.which("nvdisasm")
    spec = importlib.util.find_spec("triton")
    if spec is None or spec.origin is None:
        return None
    found = Path(spec.origin).parent / "backends" / "nvidia" / "bin" / "nvdisasm"
    return found if found.exists() else None


def test_every_instance_has_its_bounds():
    assert set(BOUNDS["registers"]) == set(INSTANCES) == set(INSTRUCTIONS)


def test_cubins_and_ptx_say_which_gpu_they_serve():
    built = "80-real,86-real,89-real,90-real,100-real,100-virtual"
    for capability in ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)):
        assert cuda._unsupported(capability, built) is None
    assert "compute capability 7.5" in cuda._unsupported((7, 5), built)
    assert "CMAKE_CUDA_ARCHITECTURES=90" in cuda._unsupported((9, 0), "80-real")
    assert cuda._unsupported((9, 0), "80") is None  # without a kind: cubin and PTX
