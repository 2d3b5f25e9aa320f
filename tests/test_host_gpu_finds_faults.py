"""The machine of tests/host_gpu punishes what a GPU would: a fault put into a kernel shows."""

import shutil

import pytest
import test_backward
import torch
from cases import SPECS, make_batch
from host_gpu import build
from host_gpu.serve import few_tiles_are_many, serve

pytestmark = [
    pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not())),
    pytest.mark.slow,
]

# File, text, its replacement, and what the machine says; None: the numbers are wrong.
# test_host_gpu_barriers.py leaves out every barrier in turn, without building anything anew.
FAULTS = {
    "no_wait_for_copies": ("tile.cuh", "cp_async_wait_all();", "", "copy was not waited for"),
    "barrier_for_some": (
        "block_reduce.cuh",
        "  __syncthreads();",
        "  if (threadIdx.x < 96) __syncthreads();",
        "nobody wrote|not reached by all|different barriers|no barrier between",
    ),
    "shared_memory_too_small": (
        "batch.cuh",
        "kThreads, kSharedBytes<P>,",
        "kThreads, kSharedBytes<P> / 2,",
        "outside of shared memory",
    ),
    "no_grid_barrier": (
        "batch.cuh",
        "  pair_weights<P>(p, first, finished);\n  grid_barrier();",
        "  pair_weights<P>(p, first, finished);",
        "no barrier of the grid between",
    ),
    "wrong_row_of_a_fragment": (
        "product.cuh",
        "return m * 16 + lane() / 4 + e / 2 * 8;",
        "return m * 16 + (lane() / 4 + 1) % 8 + e / 2 * 8;",
        None,
    ),
    "wrong_depth_of_a_fragment": (
        "product.cuh",
        "lane() / 8 % 2 * 8);",
        "(1 - lane() / 8 % 2) * 8);",
        None,
    ),
    "warp_diverges": (
        "block_reduce.cuh",
        "  for (int mask = 16;",
        "  for (int mask = lane() == 3 ? 8 : 16;",
        "not reached by all|different instructions|different barriers",
    ),
}


# The same of the tiled path.
FAULTS_BY_TILES = {
    "a_list_repeats_its_first_tiles": (
        "tile_list.cuh",
        "out[before] = std::int32_t(column);",
        "out[before] = std::int32_t(threadIdx.x / kShare);",
        None,
    ),
    "a_partial_sum_is_left_out": (
        "negative_scan.cuh",
        "above < t.count && above < local;",
        "above < t.count && above + 1 < local;",
        None,
    ),
    "columns_get_no_sums": (
        "negative_scan.cuh",
        "const bool mirrored = pairs.self && column > tile;",
        "const bool mirrored = pairs.self && column > tile + 1;",
        None,
    ),
    "a_segment_forgets_those_before_it": (
        "tile_gradient.cuh",
        "if (!first_segment) value += out;",
        "",
        None,
    ),
    "a_segment_forgets_its_projection": (
        "tile_gradient.cuh",
        "half() == 0 && !first_segment ?",
        "false ?",
        None,
    ),
    "tiles_with_weight_are_left_out": (
        "tile_list.cuh",
        "- offset <= bar;",
        "- offset >= bar;",
        None,
    ),
    "rows_in_a_wrong_order": ("tile_gradient.cuh", "dx[p.rows.sample(i) *", "dx[i *", None),
}


def check(monkeypatch, module, path="one_launch"):
    serve(monkeypatch, module, path)
    if path == "one_launch":
        # Several tiles for a block, of several steps each, their number odd.
        shape, dtype = (130, None, 129), torch.bfloat16
    else:
        # Tiles beyond the neighbours of the diagonal, with negatives that mining keeps.
        shape, dtype = (200, None, 20), torch.float64
    batch = make_batch(*shape, SPECS["default"], dtype)
    test_backward.check(batch, SPECS["default"], dtype, "cuda", "mean")


def sources(path, folder):
    if path == "by_tiles":
        return few_tiles_are_many(folder)
    shutil.copytree(build.CSRC, folder)
    return folder


@pytest.mark.parametrize("path", ["one_launch", "by_tiles"])
def test_the_check_passes_without_a_fault(monkeypatch, tmp_path, path):
    check(
        monkeypatch, build.module(sources(path, tmp_path / "csrc"), INSTANCE[path], once=True), path
    )


INSTANCE = {"one_launch": ("batch_bfloat16",), "by_tiles": ("tiled_float64",)}
EVERY = [("one_launch", name, fault) for name, fault in FAULTS.items()]
EVERY += [("by_tiles", name, fault) for name, fault in FAULTS_BY_TILES.items()]


@pytest.mark.parametrize(("path", "name", "fault"), EVERY, ids=[name for _, name, _ in EVERY])
def test_fault_shows(path, name, fault, tmp_path, monkeypatch):
    file, text, replacement, message = fault
    csrc = sources(path, tmp_path / "csrc")
    target = csrc / "cuda" / file
    source = target.read_text()
    assert text in source, f"{file} has changed: the fault {name} must be put elsewhere"
    target.write_text(source.replace(text, replacement))
    module = build.module(csrc, INSTANCE[path], track=name == "no_grid_barrier", once=True)
    error = AssertionError if message is None else RuntimeError
    with pytest.raises(error, match=message):
        check(monkeypatch, module, path)
