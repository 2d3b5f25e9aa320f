"""Every mode of the Multi-Similarity loss binds, compiles and launches, and waits for nothing."""

import functools
import itertools

import pytest
import torch
from steps import FULL, cost_of, samples, step

import ms_kernels
from ms_kernels.backends import triton as backend
from ms_kernels.rules.spec import PairSpec

DTYPES = {
    "float64": (torch.float64, "highest"),
    "float32": (torch.float32, "highest"),
    "tf32": (torch.float32, "high"),
    "float32_medium": (torch.float32, "medium"),
    "float16": (torch.float16, "highest"),
    "bfloat16": (torch.bfloat16, "highest"),
}
if not FULL:  # kernels of half and of "medium" rows are bfloat16's but for one instruction
    del DTYPES["float16"], DTYPES["float32_medium"]
# Of every kernel that a depth chooses: FFMA and float32, rows held whole, panels.
DEPTHS = (1, 8, 40, 128, 512, 4096) if FULL else (40, 512)
SIZES = (0, 1, 33, 1500) if FULL else (0, 1, 333)
MODES = {
    "self": {},
    "ids": {"ids": True},
    "refs": {"m": 77},
    "refs_ids": {"m": 77, "ids": True},
    "learnt_refs": {"m": 1300, "learn_refs": True},
}
# What a dtype changes of a kernel is its products, what ids change is which pairs there are: in the
# suite every mode meets one dtype, every dtype the modes without and with refs.
EACH_MODE = [
    (dtype, mode)
    for dtype in DTYPES
    for mode in MODES
    if FULL or dtype == "bfloat16" or mode in ("self", "learnt_refs")
]


@pytest.fixture(params=DTYPES)
def dtype(request):
    dtype, precision = DTYPES[request.param]
    if refusal := backend.refuses(PairSpec(), dtype):  # of an older Triton than the suite's
        pytest.skip(refusal)
    torch.set_float32_matmul_precision(precision)
    return dtype


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize(("dtype", "mode"), EACH_MODE, indirect=["dtype"])
def test_step(stand_in, dtype, depth, mode):
    for n in SIZES:
        run = step(n, depth, dtype, **MODES[mode])
        first, second = cost_of(stand_in, run), cost_of(stand_in, run)
        assert not first.waits
        assert first.kernels == second.kernels and not second.compiled
        assert len(first.kernels) >= 4, "nothing was launched"


@pytest.mark.parametrize("depth", (40, 512) if FULL else (40,))
@pytest.mark.parametrize(("dtype", "mode"), EACH_MODE, indirect=["dtype"])
def test_reductions(stand_in, dtype, depth, mode):
    for n, reduction in itertools.product(SIZES, ("sum", "none", "mean_valid")):
        cost = cost_of(stand_in, step(n, depth, dtype, reduction=reduction, **MODES[mode]))
        assert not cost.waits and len(cost.kernels) >= 4


OPTIONS = [
    {"normalize": False},
    {"epsilon": None},
    {"beta": 400.0},
    {"max_positive_similarity": 0.9},
    {"normalize": False, "beta": 400.0, "epsilon": None},
]


def test_shallow_rows(stand_in):
    """Of float32 they have tiles of their own."""
    for mode, n in itertools.product(MODES if FULL else ("self", "learnt_refs"), SIZES):
        cost = cost_of(stand_in, step(n, 8, torch.float32, **MODES[mode]))
        assert not cost.waits and len(cost.kernels) >= 4


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(o))
@pytest.mark.parametrize("mode", ("self", "learnt_refs"))
def test_options(stand_in, dtype, mode, options):
    for depth in (40, 512) if FULL else (40,):
        cost = cost_of(stand_in, step(70, depth, dtype, **MODES[mode], **options))
        assert not cost.waits and len(cost.kernels) >= 4


def test_row_statistics(stand_in, dtype):
    for n, m, depth in itertools.product(SIZES, (None, 1, 300), DEPTHS):
        given = [torch.zeros(n, depth, dtype=dtype), samples(n)]
        given += [] if m is None else [torch.zeros(m, depth, dtype=dtype), samples(m)]
        run = functools.partial(ms_kernels.row_statistics, *given, backend="triton")
        cost = cost_of(stand_in, run)
        assert not cost.waits and len(cost.kernels) >= 4


def test_rows_of_any_layout(stand_in):
    """Views that no vector load may read: a column apart, a row apart, one number off."""
    wide = torch.zeros(70, 2 * 40 + 1, dtype=torch.bfloat16)
    views = (wide[:, 1:41], wide[:, ::2], wide.T[:40].T, wide[:1, :40].expand(70, 40))
    for view in views:
        x = view.requires_grad_() if view.is_leaf else view

        def run(x=x):
            ms_kernels.multi_similarity_loss(x, samples(70), backend="triton")

        assert not cost_of(stand_in, run).waits


def test_a_large_batch_goes_by_panels_and_lists(stand_in):
    cost = cost_of(stand_in, step(20000, 512))
    assert {"weights", "product"} <= set(cost.kernels) and not cost.waits
