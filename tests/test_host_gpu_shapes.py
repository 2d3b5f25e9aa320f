"""Tiles of another shape: a right one computes the same loss, a wrong one does not compile."""

import re
import shutil
import subprocess

import pytest
import torch
from cases import SPECS, make_batch
from host_gpu import build
from host_gpu.serve import serve
from judge import check_backward, check_forward

from ms_kernels import options

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

# By path and bytes of an operand: taller than wide, smaller, and shorter stages.
OTHERS = {
    ("batch", 2): (128, 64, 64, 8),
    ("batch", 8): (32, 96, 64, 2),
    ("tiled", 2): (64, 64, 64, 4),
    ("tiled", 8): (32, 32, 128, 2),
}
OF_A_PRODUCT = "TileProduct<HalfProduct<Half, TileShape<{}>>, Right::rows>::kSharedBytes"
OF_A_LIST = "SimilarityTile<HalfProduct<Half, TileShape<{}>>>::kStageBytes"
# What the compiler says of each.
WRONG = [
    (OF_A_PRODUCT, (48, 64, 128, 4), "a warp takes 32 rows"),
    (OF_A_PRODUCT, (64, 64, 128, 3), "as many warps for each 32 rows"),
    (OF_A_PRODUCT, (64, 64, 128, 66), "up to 1024 threads"),
    (OF_A_PRODUCT, (64, 96, 128, 8), "ldmatrix takes 16 columns"),
    (OF_A_PRODUCT, (64, 48, 128, 2), "begin in different banks"),
    (OF_A_PRODUCT, (64, 64, 96, 4), "begin in different banks"),
    (OF_A_PRODUCT, (96, 64, 128, 6), "whole tiles both ways"),
    (OF_A_PRODUCT, (64, 64, 256, 4), "whole stages in what is padded"),
    (OF_A_PRODUCT, (1024, 64, 64, 32), "two stages fit shared memory"),
    (OF_A_PRODUCT, (128, 128, 128, 8), "two stages fit shared memory"),
    (OF_A_LIST, (128, 64, 64, 8), "a tile serves its rows and its columns"),
    (OF_A_LIST, (64, 64, 128, 8), "two threads a row"),
    (OF_A_LIST, (128, 128, 64, 8), "a word has a bit for each pair"),
]


def compiler_says(folder, *uses):
    """Of (use, shape), each in a line of its own: the source's lines begin with the first."""
    source = folder / "shape.cpp"
    lines = [f"static_assert({use.format(', '.join(map(str, shape)))} > 0);" for use, shape in uses]
    head = '#include "cuda/tiled/similarity_tile.cuh"\nusing namespace msk::gpu;\n'
    source.write_text(head + "\n".join(lines) + "\n")
    include = [f"-I{build.HERE}", f"-I{build.CSRC}"]
    command = ["g++", "-std=c++17", "-fsyntax-only", *include, str(source)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_shape_in_use_compiles(tmp_path):
    shape = (64, 64, 128, 4)
    done = compiler_says(tmp_path, (OF_A_PRODUCT, shape), (OF_A_LIST, shape))
    assert done.returncode == 0, done.stderr


def test_a_wrong_shape_does_not_compile(tmp_path):
    """All in one file, whose compiler goes on: it names the line, then why not."""
    done = compiler_says(tmp_path, *[(use, shape) for use, shape, _ in WRONG])
    assert done.returncode != 0
    for line, (_, shape, message) in enumerate(WRONG, 3):
        told = [
            part
            for part in re.split(r"(?=In instantiation of)", done.stderr)
            if f"cpp:{line}:" in part
        ]
        assert any(message in part for part in told), (shape, message, told)


@pytest.fixture(scope="module")
def module(tmp_path_factory, pytestconfig):
    csrc = tmp_path_factory.mktemp("shapes") / "csrc"
    shutil.copytree(build.CSRC, csrc)
    geometry = csrc / "cuda" / "core" / "geometry.h"
    text = geometry.read_text()
    for (path, size), shape in OTHERS.items():
        row = rf"(\{{Path::{path}, {size}, )[\d, ]*\}}"
        text, found = re.subn(row, rf"\g<1>{', '.join(map(str, shape))}}}", text)
        assert found == 1
    geometry.write_text(text)
    chosen = tuple(f"{INSTANCE[path]}_{name}" for path, name in cases(pytestconfig))
    return build.module(csrc, chosen, once=True)


INSTANCE = {"one_launch": "batch", "by_tiles": "tiled"}
# Weights of float16 are scaled beside the tile that they come from.
CASES = [("one_launch", "bfloat16"), ("by_tiles", "float16")]
OF_FLOAT64 = [("one_launch", "float64"), ("by_tiles", "float64")]


def cases(config):
    """Those of float64 are compiled by `make compile`."""
    return CASES + OF_FLOAT64 if config.getoption("--every-architecture") else CASES


def pytest_generate_tests(metafunc):
    if "path" in metafunc.fixturenames:
        metafunc.parametrize(("path", "name"), cases(metafunc.config))


@pytest.mark.slow
@pytest.mark.parametrize(("shape", "budget"), [((200, None, 129), 64 << 20), ((70, 150, 40), 0)])
def test_another_shape_gives_the_same_loss(monkeypatch, module, path, name, shape, budget):
    serve(monkeypatch, module, path)
    monkeypatch.setattr(options, "_workspace_bytes", budget)  # 0: panel by panel
    dtype = getattr(torch, name)
    batch = make_batch(*shape, SPECS["default"], dtype)
    check_forward(batch, SPECS["default"], dtype, "cuda")
    check_backward(batch, SPECS["default"], dtype, "cuda", "mean")
