"""nvcc's view of the CUDA kernels, without a GPU: they build, nothing spills, registers stay within
tests/ptxas.json and instructions of hot loops within tests/sass.json, each product runs on the
tensor cores. In the suite two of them for sm_90, in `make compile` all, for sm_80 and sm_100 too.
That shared memory fits, the sources assert."""

import json
import re
from pathlib import Path

import pytest
import sass
from host_gpu.build import INSTANCES, OPERANDS, PATHS
from sass import CSRC, NVCC, PTXAS

from ms_kernels.backends import cuda

BOUNDS = json.loads((Path(__file__).parent / "ptxas.json").read_text())
ISSUED = json.loads((Path(__file__).parent / "sass.json").read_text())

# What must be in every function with a product, by operand type.
OF_TYPE = {
    "float16": ["HMMA.16816.F32 ", "LDSM.16.M88.4"],
    "bfloat16": ["HMMA.16816.F32.BF16", "LDSM.16.M88.4"],
    "rounded": ["HMMA.16816.F32.BF16", "LDSM.16.M88.4"],
    "float32": ["HMMA.1688.F32.TF32", "LDSM.16.M88.4"],
    "tf32": ["HMMA.1688.F32.TF32", "LDSM.16.M88.4"],
    "float64": ["DMMA"],
}
# Those with a right operand that ldmatrix transposes where its elements have 16 bits, and others.
GRADIENTS = {
    "batch": ["embedding_gradient"],
    "small": ["gradient_tiles"],
    "tiled": ["tile_gradient_kernel"],
}
SIMILARITIES = {
    "batch": ["similarities"],
    "small": ["similarity_tiles"],
    "tiled": [
        *("positive_scan_kernel", "negative_scan_kernel", "positive_sums_kernel"),
        *("tile_weights_kernel", "learned_weights_kernel"),
    ],
}


def instructions(instance):
    """{function: what must be in it}."""
    path, operand = instance.split("_")
    transposed = ["LDSM.16.MT88.4"] if "HMMA.16816" in OF_TYPE[operand][0] else []
    every = [*OF_TYPE[operand], "LDGSTS"]
    found = {name: every for name in SIMILARITIES[path]}
    return {**found, **{name: [*every, *transposed] for name in GRADIENTS[path]}}


def architectures(config):
    """sm_86 and sm_89 take the same PTX as sm_80, with as many registers."""
    return BOUNDS["architectures"] if config.getoption("--every-architecture") else ["90"]


def instances(config):
    """All paths, of 16 and of 32 bits; the others differ from these in their products."""
    some = ["batch_float32", "small_float64", "tiled_float16"]
    return INSTANCES if config.getoption("--every-architecture") else some


def pytest_generate_tests(metafunc):
    for name, values in (("architecture", architectures), ("instance", instances)):
        if name in metafunc.fixturenames:
            metafunc.parametrize(name, values(metafunc.config))


# Of whole batches in registers the bounds are those of registers and spills alone.
UNCOUNTED = "small"


@pytest.mark.skipif(None in (NVCC, PTXAS), reason="nvcc is not installed")
@pytest.mark.slow
def test_every_instance_builds_without_spills(instance, architecture, tmp_path):
    cubin, report = sass.compiled(instance, architecture, tmp_path)
    spills = re.findall(r"(\d+) bytes spill (?:stores|loads)", report)
    assert spills and set(spills) == {"0"}, f"{instance} spills for sm_{architecture}"
    registers = max(int(n) for n in re.findall(r"Used (\d+) registers", report))
    assert registers <= BOUNDS["registers"][instance], f"{instance}: {registers} registers"
    assert "bytes smem" not in report
    found = sass.disassembler()
    if found is None:
        pytest.skip("nvdisasm is not installed: it comes with CUDA or with the triton package")
    code = sass.functions(sass.run([found, cubin]))
    for function, wanted in instructions(instance).items():
        for instruction in wanted:
            assert instruction in code[function], f"{instance}: {function} has no {instruction}"
    if instance.startswith(UNCOUNTED):
        return
    for function, counts in sass.counts(code, instance).items():
        for part, count in counts.items():
            bound = ISSUED[instance][function][part]
            assert count <= bound, f"{instance}: {count} instructions, {part} of {function}"


def test_every_instance_has_its_bounds():
    every = {f"{path}_{operand}" for path in GRADIENTS for operand in OF_TYPE}
    assert set(BOUNDS["registers"]) == set(INSTANCES) == every
    assert set(ISSUED) == {name for name in every if not name.startswith(UNCOUNTED)}


def test_cmake_compiles_every_instance():
    text = (CSRC.parent / "cmake" / "cuda" / "CMakeLists.txt").read_text()
    names = dict(re.findall(r"foreach\((path|operand) ([^)]*)\)", text))
    assert set(names["path"].split()) == set(PATHS)
    assert set(names["operand"].split()) == set(OPERANDS)


def test_cubins_and_ptx_say_which_gpu_they_serve():
    def unfit(capability, built):
        return cuda.unfit(capability, built, 13000, 13000)

    # What is built without a GPU, and all that nvcc 13.0 serves.
    for built in ("80-real,90-real,90-virtual", "80-real,86-real,89-real,90-real,100"):
        for capability in ((8, 0), (8, 6), (8, 7), (8, 9), (9, 0), (10, 0), (10, 3), (12, 0)):
            assert unfit(capability, built) is None
    assert "compute capability 7.5, the kernels need 8.0" in unfit((7, 5), "80-real,80-virtual")
    assert "CMAKE_CUDA_ARCHITECTURES=90" in unfit((9, 0), "80-real")
    assert unfit((9, 0), "80") is None  # without a kind: cubin and PTX
