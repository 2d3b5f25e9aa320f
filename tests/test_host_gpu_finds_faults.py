"""The machine of tests/host_gpu punishes what a GPU would: a fault put into a kernel shows."""

import ctypes

import pytest
import torch
from cases import SPECS, make_batch
from family import UNKNOWN, step
from family import batch as few_rows
from host_gpu import build
from host_gpu.serve import few_tiles_are_many, serve
from judge import check_backward

from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import NTXent

pytestmark = [
    pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not())),
    pytest.mark.slow,
]

# {fault: path, file, text, what is there in its place, and what the machine says while the fault is
# {planted}; None: the numbers are wrong}. All are compiled into one module.
# test_host_gpu_barriers.py leaves out every barrier in turn.
# Of this one the next test but one has a check of its own.
UNGUARDED = "any_code_of_a_rule_is_taken"
FAULTS = {
    "no_wait_for_copies": (
        "one_launch",
        "core/tile.cuh",
        "cp_async_wait_all();",
        "if (!{planted}) cp_async_wait_all();",
        "copy was not waited for",
    ),
    "barrier_for_some": (
        "one_launch",
        "core/block_reduce.cuh",
        "  __syncthreads();",
        "  if (!{planted} || threadIdx.x < 96) __syncthreads();",
        "nobody wrote|not reached by all|different barriers|no barrier between",
    ),
    "shared_memory_too_small": (
        "one_launch",
        "batch/batch.cuh",
        "kThreads<P>, kSharedBytes<P>,",
        "kThreads<P>, kSharedBytes<P> / ({planted} ? 2 : 1),",
        "outside of shared memory",
    ),
    UNGUARDED: (
        "one_launch",
        "../module_call.h",
        "if (!(weighting >= 0",
        "if (!{planted} && !(weighting >= 0",
        None,
    ),
    "wrong_row_of_a_fragment": (
        "one_launch",
        "core/product.cuh",
        "return m * 16 + lane() / 4 + e / 2 * 8;",
        "return m * 16 + (lane() / 4 + {planted}) % 8 + e / 2 * 8;",
        None,
    ),
    "wrong_depth_of_a_fragment": (
        "one_launch",
        "core/product.cuh",
        "lane() / 8 % 2 * 8);",
        "({planted} != lane() / 8 % 2) * 8);",
        None,
    ),
    "warp_diverges": (
        "one_launch",
        "core/block_reduce.cuh",
        "  for (int mask = 16;",
        "  for (int mask = {planted} && lane() == 3 ? 8 : 16;",
        "not reached by all|different instructions|different barriers",
    ),
    "a_stage_is_not_waited_for": (
        "small",
        "small/staged_product.cuh",
        "cp_async_wait_all_but<kStages - 2>();",
        "if ({planted}) cp_async_wait_all_but<kStages - 1>(); else "
        "cp_async_wait_all_but<kStages - 2>();",
        "copy was not waited for",
    ),
    "a_stage_is_overwritten": (
        "small",
        "small/staged_product.cuh",
        "load(k + kStages - 1);",
        "load(k + kStages - 1 + {planted});",
        "a write over what another thread reads, with no barrier between",
    ),
    "tiles_below_the_diagonal_are_left_out": (
        "small",
        "small/similarity_tiles.cuh",
        "if (mirror) transposed",
        "if (mirror && !{planted}) transposed",
        None,
    ),
    "a_part_of_the_depth_is_left_out": (
        "small",
        "small/row_losses.cuh",
        "part < pass.splits;",
        "part + {planted} < pass.splits;",
        None,
    ),
    "other_anchors_weigh_nothing": (
        "small",
        "small/row_weights.cuh",
        "side ? by_column : by_row",
        "side ? by_column && !{planted} : by_row",
        None,
    ),
    "a_lane_leaves_out_its_last_pair": (
        "small",
        "small/row_losses.cuh",
        "(PairSet(1) << values) - 1",
        "(PairSet(1) << (values - {planted})) - 1",
        None,
    ),
    "a_list_repeats_its_first_tiles": (
        "by_tiles",
        "tiled/tile_list.cuh",
        "out[before] = std::int32_t(column);",
        "out[before] = std::int32_t({planted} ? threadIdx.x : column);",
        None,
    ),
    "a_partial_sum_is_left_out": (
        "by_tiles",
        "tiled/negative_scan.cuh",
        "above < t.count && above < local;",
        "above < t.count && above + {planted} < local;",
        None,
    ),
    "columns_get_no_sums": (
        "by_tiles",
        "tiled/negative_scan.cuh",
        "const bool mirrored = pairs.self && column > tile;",
        "const bool mirrored = pairs.self && column > tile + {planted};",
        None,
    ),
    "a_segment_forgets_those_before_it": (
        "by_tiles",
        "tiled/tile_gradient.cuh",
        "if (!first_segment) value += out;",
        "if (!first_segment && !{planted}) value += out;",
        None,
    ),
    "a_segment_forgets_its_projection": (
        "by_tiles",
        "tiled/tile_gradient.cuh",
        "tile_half<P>() == 0 && !first_segment ?",
        "tile_half<P>() == 0 && !first_segment && !{planted} ?",
        None,
    ),
    "tiles_with_weight_are_left_out": (
        "by_tiles",
        "tiled/tile_list.cuh",
        "return bound - offset <= bar;",
        "return {planted} ? bound - offset >= bar : bound - offset <= bar;",
        None,
    ),
    "rows_in_a_wrong_order": (
        "by_tiles",
        "tiled/tile_gradient.cuh",
        "dx[p.rows.sample(i) *",
        "dx[({planted} ? i : p.rows.sample(i)) *",
        None,
    ),
}


def check(monkeypatch, module, path):
    serve(monkeypatch, module, path)
    spec = SPECS["default"]
    if path == "small":
        # Two parts of the depth, tiles below the diagonal, and more stages of the gradient than are
        # on their way at a time. At such a depth mining would keep nothing.
        shape, dtype, spec = (260, None, 260), torch.bfloat16, SPECS["unmined"]
    elif path == "one_launch":
        # Several tiles for a block, of several steps each, their number odd.
        shape, dtype = (130, None, 129), torch.bfloat16
    else:
        # Tiles beyond the neighbours of the diagonal, with negatives that mining keeps.
        shape, dtype = (200, None, 20), torch.float64
    batch = make_batch(*shape, spec, dtype)
    check_backward(batch, spec, dtype, "cuda", "mean")


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    csrc = few_tiles_are_many(tmp_path_factory.mktemp("faults") / "csrc")
    for number, (name, (_, file, text, replacement, _)) in enumerate(FAULTS.items(), 1):
        target = csrc / "cuda" / file
        source = target.read_text()
        assert text in source, f"{file} has changed: the fault {name} must be put elsewhere"
        planted = replacement.format(planted=f"(host_gpu_fault == {number})")
        declared = 'extern "C" int host_gpu_fault;\n' if name == UNGUARDED else ""
        target.write_text(declared + source.replace(text, planted))
    return build.module(csrc, ("batch_bfloat16", "small_bfloat16", "tiled_float64"), once=True)


@pytest.fixture
def plant(module):
    fault = ctypes.c_int.in_dll(ctypes.CDLL(module.__file__), "host_gpu_fault")

    def plant(name):
        fault.value = 1 + list(FAULTS).index(name)

    yield plant
    fault.value = 0


@pytest.mark.parametrize("path", ["one_launch", "small", "by_tiles"])
def test_the_check_passes_without_a_fault(module, monkeypatch, path):
    check(monkeypatch, module, path)


@pytest.mark.parametrize("name", [name for name in FAULTS if name != UNGUARDED])
def test_fault_shows(module, plant, name, monkeypatch):
    path, _, _, _, message = FAULTS[name]
    plant(name)
    error = AssertionError if message is None else RuntimeError
    with pytest.raises(error, match=message):
        check(monkeypatch, module, path)


@pytest.mark.parametrize("rules", UNKNOWN, ids=["weighting", "mining"])
def test_an_unknown_rule_that_is_not_refused_makes_no_number(module, plant, monkeypatch, rules):
    """It keeps no pair, and neither a loss nor a gradient looks as if it had kept all."""
    plant(UNGUARDED)
    serve(monkeypatch, module, "one_launch")
    monkeypatch.setattr(PairSpec, "native_rules", lambda *_: rules)
    sides = few_rows(70, None, 8, torch.bfloat16)
    for reduction in ("none", "mean"):
        for found in step(sides, "cuda", reduction, weighting=NTXent(0.2)):
            assert found.isnan().all()
