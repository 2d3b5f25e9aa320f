"""What the host does for a step of the cuda backend: its launches and their attributes, without a
GPU.

csrc/ is compiled by g++ as it is, launch.cuh included, against the stand-in of the CUDA runtime in
tests/host_gpu, which refuses what the runtime documents as an error and records every call. Nothing
is computed here. What is not walked: nvcc's registration of kernels, and the runtime itself, which
takes no driver but NVIDIA's (tests/test_cuda_driver.py says how far it goes).
"""

import pytest
import torch
from cases import DTYPES, case_id
from host_gpu import build
from host_gpu.host import Host, batch, step
from host_gpu.runtime import LARGE

import ms_kernels
from ms_kernels import options
from ms_kernels.backends.native_call import native_spec
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import NATIVE, PairSpec

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

WEIGHTINGS = [rule() for rule in NATIVE]
MININGS = [
    *(mine.NoMining(), mine.HardestMining(), mine.SemiHardMining()),
    *(mine.MultiSimilarityMining(), mine.ThresholdMining()),
]
OWN_MINING = (mine.NoMining, mine.MultiSimilarityMining)
# (N, M, D); M None: the batch against itself. None, one and an odd number of rows, of both tiles'
# edges, and more than one segment of either; every step of a pipeline, and depths that split.
SHAPES = [
    *[(n, None, 8) for n in (0, 1, 2, 63, 64, 65, 1023, 1024, 1025, 2049, 9001)],
    *[(257, None, d) for d in (1, 2, 7, 40, 128, 512, 4096)],
    *[(0, 5, 8), (5, 0, 8), (0, 0, 8), (1, 1, 1), (3, 4097, 40), (4097, 3, 40), (300, 70, 129)],
]


@pytest.fixture(params=["one_launch", "by_tiles"])
def path(request):
    return request.param


@pytest.fixture
def host(monkeypatch, path):
    return Host(monkeypatch, build.module(), path)


def family_step(sides, weighting, reduction="mean", **chosen):
    x, y, *refs = sides
    loss = ms_kernels.pair_loss(
        x, y, *refs, weighting=weighting, reduction=reduction, backend="cuda", **chosen
    )
    loss.sum().backward()


def expected(shape, path, reduction):
    """Launches of a step. With "none" the gradient of each side is a call of its own."""
    n, m, _ = shape
    gradient_calls = 0 if reduction == "mean" else 1 + (m is not None)
    if path == "one_launch":
        return 1 + gradient_calls
    sides = [(n, n)] if m is None else [(n, m), (m, n)]

    def prepare(rows, columns):  # for the rows always: it lowers flags too
        return 1 if m is None or columns == 0 else 2

    launches = prepare(*sides[0])
    if n:
        launches += 4 + 2 * (sides[0][1] > 0)
    for rows, columns in sides:
        if gradient_calls:  # with the anchors' terms, as rows and as columns in self mode
            launches += prepare(rows, columns) + (n > 0) * (2 if m is None else 1)
        if rows:  # a list of tiles; of each segment of 32 of them weights, if any, and products
            launches += 1 + max(1, 2 * -(-columns // (64 * 32)))
    return launches


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_launches_of_every_size(host, path, shape, reduction):
    launches = host.launches_of(lambda: step(batch(*shape, torch.bfloat16), reduction))
    assert len(launches) == expected(shape, path, reduction)


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", [(130, None, 40), (70, 130, 33)], ids=str)
def test_launches_of_every_type(host, path, shape, dtype, precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        for reduction in ("mean", "none", "sum", "mean_valid"):
            launches = host.launches_of(lambda r=reduction: step(batch(*shape, dtype), r))
            calls = "none" if reduction == "none" else "mean"
            assert len(launches) == expected(shape, path, calls)
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.parametrize(
    "chosen",
    [
        {"normalize": False},
        {"epsilon": None},
        {"max_positive_similarity": 0.9},
        {"ids": torch.arange(70), "ref_ids": torch.arange(35, 165)},
    ],
    ids=lambda chosen: next(iter(chosen)),
)
def test_launches_of_every_option(host, path, chosen):
    shape = (70, 130, 33)
    launches = host.launches_of(lambda: step(batch(*shape, torch.float32), **chosen))
    assert len(launches) == expected(shape, path, "mean")


def test_statistics_alone(host, path):
    x, y = batch(300, None, 40, torch.float32)
    launches = host.launches_of(lambda: ms_kernels.row_statistics(x, y, backend="cuda"))
    assert len(launches) == (1 if path == "one_launch" else 7)


@pytest.mark.parametrize("learns", ["anchors", "candidates", "neither"])
def test_launches_when_one_side_learns(host, path, learns):
    x, y, r, z = batch(300, 70, 40, torch.float32)
    x.requires_grad_(learns == "anchors"), r.requires_grad_(learns == "candidates")

    def run():
        loss = ms_kernels.multi_similarity_loss(x, y, r, z, backend="cuda")
        if learns != "neither":
            loss.backward()

    assert len(host.launches_of(run)) == (
        1 if path == "one_launch" else {"neither": 8}.get(learns, 8 + 3)
    )


@pytest.mark.parametrize("path", ["one_launch"], indirect=True)
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(130, None, 40), (70, 4096, 33)], ids=str)
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=lambda rule: type(rule).__name__)
def test_one_launch_whatever_the_rule(host, path, weighting, shape, reduction):
    """A triplet loss of thousands of candidates too, which compares 64 at a time."""
    for mining in MININGS:
        launches = host.launches_of(
            lambda m=mining: family_step(
                batch(*shape, torch.float32), weighting, reduction, mining=m
            )
        )
        # In backward they are looked at anew, for both sides at once.
        anew = reduction == "none" and isinstance(weighting, weigh.Contrastive | weigh.Triplet)
        assert len(launches) == (2 if anew else expected(shape, path, reduction))


@pytest.mark.parametrize("budget", [0, 1 << 20])
def test_memory_changes_the_number_of_tiled_launches_alone(monkeypatch, budget):
    """Panels and chunks of few rows are further launches, or turns of a loop on the device."""
    monkeypatch.setattr(options, "_workspace_bytes", budget)
    shape = (700, None, 40)
    for path in ("one_launch", "by_tiles"):
        host = Host(monkeypatch, build.module(), path)
        launches = host.launches_of(lambda: step(batch(*shape, torch.float32)))
        if path == "one_launch":
            assert len(launches) == 1
        elif budget == 0:  # eleven tiles of rows, one at a time, in both loops
            assert len(launches) == 1 + 4 + 2 * 11 + 3 * 11


def test_a_call_runs_only_in_the_workspace_it_planned():
    """Else the kernels would write at the addresses of no workspace at all."""
    module, (x, y) = build.module(), batch(20, None, 8, torch.float32)
    stats = torch.zeros(7, 20, dtype=torch.int64)  # as wide as the widest of them

    def call_of(weighting):
        side = (x.data_ptr(), x.stride(0), len(x), y.data_ptr(), 0, 0)
        spec = native_spec(PairSpec(weighting), torch.float32)
        job, precision = module.Job.statistics, module.Precision.highest
        kinds = (job, module.DType.float32, precision, x.shape[1])
        call = module.Call(*kinds, side, None, spec, 0.0, False)
        call.write_statistics([row.data_ptr() for row in stats])
        return call

    call = call_of(weigh.MultiSimilarity())
    with pytest.raises(ValueError, match=r"run: expected a call of plan\(\) before, got none"):
        call.run(64, LARGE, 0)
    call.plan(1 << 20)
    with pytest.raises(ValueError, match="workspace: expected the address of .* bytes, got 0"):
        call.run(0, LARGE, 0)
    with pytest.raises(ValueError, match="workspace: expected an address .* multiple of 16"):
        call.run(8, LARGE, 0)
    call = call_of(weigh.Triplet())
    call.plan(1 << 20)
    with pytest.raises(ValueError, match=r"run: expected a call of read_ordinals\(\) before"):
        call.run(64, LARGE, 0)
