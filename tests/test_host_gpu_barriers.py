"""No two accesses of a kernel to one place race, and each of its barriers is there for a reason:
run without it, the machine of tests/host_gpu sees a race.

The kernels are built so that each load and store is seen (tests/host_gpu/global_memory.h).
"""

import ctypes
import math
import re

import pytest
import torch
from host_gpu import build
from host_gpu.serve import few_tiles_are_many, serve

import ms_kernels
from ms_kernels import multi_similarity_loss, options, pair_loss
from ms_kernels.backends import cuda
from ms_kernels.backends.interface import Side
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec

pytestmark = [
    pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not())),
    pytest.mark.slow,
]

# float16 weights are scaled into their range, in shared memory and loops of their own.
INSTANCES = ("batch_float16", "batch_bfloat16", "small_float16", "tiled_float16")


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    csrc = few_tiles_are_many(tmp_path_factory.mktemp("few_tiles") / "csrc")
    return build.module(csrc, INSTANCES, track=True)


def side(n, depth, classes, dtype, size=1.0):
    generator = torch.Generator().manual_seed(n)
    x = size * torch.randn(n, depth, generator=generator)
    return x.to(dtype).requires_grad_(), torch.arange(n) * 7 % classes


def step(
    n=70,
    m=None,
    depth=20,
    classes=18,
    dtype=torch.float16,
    loss=None,
    spoil=None,
    enlarge=None,
    **chosen,
):
    """Loss and gradients of all sides; rows `spoil` are not finite, `enlarge` large."""
    x, y = side(n, depth, classes, dtype)
    refs = () if m is None else side(m, depth, classes, dtype)
    if spoil is not None:
        x.data[spoil] = math.inf
    losses = (loss or multi_similarity_loss)(x, y, *refs, backend="cuda", **chosen)
    losses.sum().backward()


def reduced(n):
    x, y = side(n, 40, 18, torch.float16)
    cuda.reduced_loss_and_gradient(
        Side(x, y, None), None, PairSpec(), "mean_valid", x.dtype, True, False
    )


def too_large(n):
    x, y = side(n, 40, 18, torch.float16, size=1e3)
    multi_similarity_loss(x, y, backend="cuda").backward()


def statistics(n=130):
    x, y = side(n, 20, 18, torch.float16)
    ms_kernels.row_statistics(x.detach(), y, backend="cuda")


def family(weighting, mining=None, **sizes):
    step(loss=pair_loss, weighting=weighting, mining=mining or mine.NoMining(), **sizes)


def learned(*numbers, rule=weigh.MultiSimilarity, **sizes):
    """Of options that learn."""
    values = [torch.tensor(number, requires_grad=True) for number in numbers]
    family(rule(*values), mine.MultiSimilarityMining(), **sizes)


def in_panels(walk):
    saved = options._workspace_bytes
    options._workspace_bytes = 0
    try:
        walk()
    finally:
        options._workspace_bytes = saved


IDS = {"ids": torch.arange(70), "ref_ids": torch.arange(5, 75)}
BATCH = {
    "batch": lambda: step(depth=129),
    "bfloat16": lambda: step(dtype=torch.bfloat16),
    "rows_apart": lambda: step(reduction="none"),
    "refs": lambda: step(m=130),
    "ids": lambda: step(m=70, **IDS),
    "panels": lambda: in_panels(step),
    "panels_of_refs": lambda: in_panels(lambda: step(m=70)),
    "statistics": statistics,
    "family": lambda: family(weigh.NTXent(0.2), mine.SemiHardMining(0.5)),
    "family_top_k": lambda: family(weigh.NTXent(0.2), mine.TopKMining(3)),
    "family_of_refs": lambda: family(weigh.Contrastive(0.9, 0.1), m=70),
    "triplet": lambda: family(weigh.Triplet(0.3)),
    "triplet_in_panels": lambda: in_panels(lambda: family(weigh.Triplet(0.3))),
    # Products of one stage, which sums are then written over.
    "learned": lambda: learned(2.0, 0.5, rule=weigh.SigLIP, n=60),
    "learned_of_refs": lambda: learned(2.0, 50.0, 0.5, m=130),
    "learned_in_panels": lambda: in_panels(lambda: learned(2.0, 50.0, 0.5)),
    "triplet_in_rounds": lambda: family(weigh.Triplet(0.3), n=10, m=134, classes=2),
}
TILES = {
    "tiles": lambda: step(200),
    "tiles_of_refs": lambda: step(70, 200),
    "tiles_with_ids": lambda: step(m=70, **IDS),
    "tiles_in_panels": lambda: in_panels(lambda: step(200)),
    "tiles_of_rows_apart": lambda: step(130, reduction="none"),
    "tiles_of_one_class": lambda: step(200, classes=1),
    "tiles_of_statistics": lambda: statistics(200),
    "tiles_that_learn": lambda: learned(2.0, 50.0, 0.5, n=200),
    "tiles_of_refs_that_learn": lambda: learned(2.0, 50.0, 0.5, n=70, m=200),
    "tiles_not_finite": lambda: step(200, spoil=slice(60, 70)),
}
# Rows of 33 numbers lie askew, and are copied; so are those of size 1e3 in float16.
SMALL = {
    "small": lambda: step(130, depth=40),
    "small_copied": lambda: step(130, depth=33),
    "small_too_large": lambda: too_large(70),
    "small_of_refs": lambda: step(m=130, depth=40),
    "small_with_ids": lambda: step(m=70, depth=40, **IDS),
    "small_family": lambda: family(weigh.NTXent(0.2), mine.TopKMining(3), depth=40),
    "small_reduced": lambda: reduced(130),
}
WALKS = {**BATCH, **SMALL, **TILES}


@pytest.fixture
def walk(module, monkeypatch):
    def run(name):
        paths = {"one_launch": BATCH, "small": SMALL, "by_tiles": TILES}
        serve(monkeypatch, module, next(path for path in paths if name in paths[path]))
        WALKS[name]()

    return run


@pytest.mark.parametrize("name", WALKS)
def test_nothing_races(walk, name):
    walk(name)


def barriers(call):
    """file.cuh:line of every such barrier in the kernels."""
    found = []
    for path in sorted((build.CSRC / "cuda").rglob("*.cuh")):
        lines = path.read_text().splitlines()
        found += [f"{path.name}:{k}" for k, line in enumerate(lines, 1) if f" {call}();" in line]
    return [barrier for barrier in found if not barrier.startswith(("ptx.", "launch."))]


OF_GRID, OF_BLOCK = barriers("grid_barrier"), barriers("__syncthreads")
# Walks of which one at least needs each barrier of a file.
NEEDED_BY = {
    "block_reduce": ["batch"],
    "tile": ["batch", "refs"],
    "pair_weights": ["bfloat16"],
    "row_statistics": ["family_top_k"],
    "staged_product": ["small"],
    "ranked_statistics": ["triplet"],
    "negative_scan": ["tiles", "tiles_of_one_class"],
    "tile_weights": ["tiles", "tiles_that_learn"],
    "row_sums": ["learned"],
}


# Those that each barrier of the grid is met by, by the function that has it.
ALONE, IN_PANELS = ["batch", "family", "triplet"], ["panels", "triplet_in_panels"]
GRID_NEEDED_BY = {
    "panel_gradient": [*ALONE, *IN_PANELS],
    "statistics_pass": ALONE,
    "gradient_pass": IN_PANELS,
    "next_round": ["triplet", "triplet_in_rounds"],
    # The first of them only where the embeddings are read as they lie.
    "products_and_scales": ["small_too_large"],
    "loss_and_gradient": ["small", "small_family", "small_of_refs"],
}


def function_of(barrier):
    name, line = barrier.split(":")
    (path,) = (build.CSRC / "cuda").rglob(name)
    above = path.read_text().splitlines()[: int(line)]
    return [m[1] for m in map(re.compile(r"(?:inline )?MSK_\w+ \w+ (\w+)\(").match, above) if m][-1]


GRID_CASES = [(b, name) for b in OF_GRID for name in GRID_NEEDED_BY[function_of(b)]]


def test_the_machine_meets_every_barrier(walk, module):
    assert len(OF_GRID) == 13 and len(OF_BLOCK) >= 15
    named = ("bfloat16", "panels", "triplet", "family_top_k", "learned", "small_too_large", "tiles")
    for name in (*named, "tiles_that_learn"):
        walk(name)
    library = ctypes.CDLL(module.__file__)
    library.host_gpu_barriers.restype = ctypes.c_char_p
    met = library.host_gpu_barriers().decode().splitlines()
    assert sorted(met) == sorted([f"grid {b}" for b in OF_GRID] + [f"block {b}" for b in OF_BLOCK])


@pytest.mark.parametrize(("barrier", "name"), GRID_CASES)
def test_a_missing_barrier_of_the_grid_shows(walk, monkeypatch, barrier, name):
    """That of each block is left in its place: only global memory is no longer there for all."""
    monkeypatch.setenv("HOST_GPU_WITHOUT", barrier)
    with pytest.raises(RuntimeError, match="no barrier of the grid between; first at") as error:
        walk(name)
    places = re.findall(r"\w+\.cuh:\d+", str(error.value).partition("first at")[2])
    assert len(places) >= 2


@pytest.mark.parametrize("barrier", OF_BLOCK)
def test_a_missing_barrier_of_a_block_shows(walk, monkeypatch, barrier):
    monkeypatch.setenv("HOST_GPU_WITHOUT", barrier)
    message = "no barrier (of the block )?between|nobody wrote|not waited for|is on its way"
    with pytest.raises(RuntimeError, match=message):
        for name in NEEDED_BY.get(barrier.partition(".")[0], ["tiles"]):
            walk(name)
