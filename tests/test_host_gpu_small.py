"""Small batches by a kernel of their own, executed on the CPU: the reduced loss with its gradients,
and what this path alone has."""

import math

import pytest
import torch
from cases import DTYPES, SPECS, assert_within_budget, case_id, make_batch
from family import KERNELS, MININGS, name_of, step
from family import batch as family_batch
from host_gpu import build
from host_gpu.host import ALLOWED, Host
from host_gpu.runtime import Runtime, fresh
from host_gpu.serve import serve
from rounding import Rounding

from ms_kernels import multi_similarity_loss
from ms_kernels.backends import cuda
from ms_kernels.backends.interface import Side
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

RULES = [rule for rule in KERNELS if not isinstance(rule, weigh.Triplet)]
REDUCTIONS = ["sum", "mean", "mean_valid"]
# One pair or none, a warp's width and beyond, both sides of the width of a row's registers.
SIZES = [1, 2, 33, 255, 256, 257, 1000]


@pytest.fixture
def backend(monkeypatch):
    return serve(monkeypatch, build.module(), "small")


def reduced(sides, spec, reduction="mean", ids=(None, None)):
    """The loss and its gradients."""
    x, y, *refs = sides
    candidates = Side(*refs, ids[1]) if refs else None
    found = cuda.reduced_loss_and_gradient(
        Side(x, y, ids[0]), candidates, spec, reduction, x.dtype, True, bool(refs)
    )
    loss, *gradients = found
    assert loss.shape == () and loss.dtype == x.dtype
    return [loss, *(g for g in gradients if g is not None)]


def exact(sides, spec, reduction, ids=(None, None)):
    wide = [side.double() if side.is_floating_point() else side for side in sides]
    chosen = {} if ids[0] is None else {"ids": ids[0]}
    if ids[1] is not None:
        chosen["ref_ids"] = ids[1]
    return step(
        wide,
        "reference",
        reduction,
        weighting=spec.weighting,
        mining=spec.mining,
        max_positive_similarity=spec.max_positive_similarity,
        normalize=spec.normalize,
        **chosen,
    )


def assert_exact(sides, spec, reduction, ids=(None, None)):
    got, want = reduced(sides, spec, reduction, ids), exact(sides, spec, reduction, ids)
    for found, wanted in zip(got, want, strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("weighting", RULES, ids=name_of)
def test_every_rule(backend, weighting, mining):
    """The reductions take turns, with candidates that learn and without."""
    turn = RULES.index(weighting) + MININGS.index(mining)
    spec = PairSpec(weighting, mining)
    assert_exact(family_batch(40, None, 9), spec, REDUCTIONS[turn % 3])
    assert_exact(family_batch(20, 70, 4), spec, REDUCTIONS[(turn + 1) % 3])


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", [(70, None, 48), (40, 90, 20)], ids=case_id)
def test_errors_stay_within_the_budget(backend, shape, dtype, reduction):
    spec = SPECS["default"].spec
    x, y, *refs = make_batch(*shape, SPECS["default"], dtype)
    sides = (x, y, *(side for side in refs if side is not None))
    floors = Rounding(sides, spec.weighting, spec.mining, backend=backend)
    floors = floors.step(reduction, torch.ones((), dtype=torch.float64))
    found, want = reduced(sides, spec, reduction), exact(sides, spec, reduction)
    for got, wanted, floor in zip(found, want, floors, strict=True):
        assert_within_budget(got, None, wanted, floor)


@pytest.mark.parametrize("n", SIZES)
def test_every_size(backend, n):
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-4)):
        if n == 1000 and dtype == torch.float64:
            continue
        sides = family_batch(n, None, 4, dtype)
        got = reduced(sides, PairSpec(mining=mine.NoMining()))
        want = exact(sides, PairSpec(mining=mine.NoMining()), "mean")
        for found, wanted in zip(got, want, strict=True):
            atol = rtol * float(wanted.abs().max())
            torch.testing.assert_close(found.double(), wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_loss_stays_wide_under_autocast(monkeypatch, backend, dtype, reduction):
    """From the same launch, and rounded it is the loss that does not."""
    monkeypatch.setattr(cuda, "loss_and_gradient", None)
    x, y = family_batch(40, None, 9, dtype)
    options = {"epsilon": None, "reduction": reduction, "backend": backend}
    with torch.autocast("cpu", dtype=torch.bfloat16):
        wide = multi_similarity_loss(x.requires_grad_(), y, **options)
    wide.backward()
    narrow = multi_similarity_loss(x, y, **options)
    assert wide.dtype == torch.float32 and x.grad.dtype == dtype
    if reduction == "sum":  # which is wide in any case
        assert narrow.dtype == torch.float32 and wide == narrow
        return
    assert narrow.dtype == dtype and wide.to(dtype) == narrow and wide != narrow.float()


def test_sides_without_rows(backend):
    x, y = family_batch(5, None, 4)
    for sides in ((x[:0], y[:0]), (x[:0], y[:0], x, y), (x, y, x[:0], y[:0])):
        loss, *gradients = reduced(sides, PairSpec())
        assert loss == 0 and not any(g.any() for g in gradients)


def test_ids_options_and_rows_as_they_are(backend):
    sides = family_batch(30, 50, 5)
    ids = torch.arange(30), torch.arange(10, 60)
    capped = PairSpec(max_positive_similarity=0.6)
    for spec in (PairSpec(), capped, PairSpec(weigh.Contrastive(0.9, 0.1), normalize=False)):
        assert_exact(sides, spec, "mean", ids)
        assert_exact(sides[:2], spec, "mean", (torch.arange(30) // 2, None))


def test_the_grid_changes_no_bit(monkeypatch, tmp_path):
    """Of one block, of several, and of more than there is work for; visited either way round."""
    batches = [family_batch(n, m, 40, torch.float32) for n, m in ((150, None), (70, 130))]
    batches.append(family_batch(70, None, 9, torch.bfloat16))
    want = None
    for blocks in ("1", "2", "7"):
        monkeypatch.setenv("HOST_GPU_BLOCKS", blocks)
        folder = tmp_path / f"blocks{blocks}"
        folder.mkdir()
        serve(monkeypatch, fresh(folder), "small")
        found = [v for sides in batches for v in reduced(sides, PairSpec(), "mean_valid")]
        monkeypatch.setenv("HOST_GPU_BACKWARDS", "1")
        found += [v for sides in batches for v in reduced(sides, PairSpec(), "mean_valid")]
        monkeypatch.delenv("HOST_GPU_BACKWARDS")
        half = len(found) // 2
        assert all(torch.equal(a, b) for a, b in zip(found[:half], found[half:], strict=True))
        want = found if want is None else want
        assert all(torch.equal(a, b) for a, b in zip(found, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
def test_rows_that_lie_askew_are_copied_first(backend, dtype):
    """To the same numbers but for rounding: a copy is scaled by a power of two."""
    x, y = family_batch(70, None, 24, dtype)
    askew = torch.empty(70 * 24 + 1, dtype=dtype)[1:].view(70, 24).copy_(x)
    strided = torch.empty(70, 31, dtype=dtype)[:, :24].copy_(x)
    assert x.data_ptr() % 16 == 0 and askew.data_ptr() % 16
    want = reduced((x, y), PairSpec())
    rtol = {torch.float64: 1e-12, torch.float32: 1e-4}.get(dtype, 2e-2)
    for other in (askew, strided):
        for got, wanted in zip(reduced((other, y), PairSpec()), want, strict=True):
            atol = rtol * float(wanted.abs().max())
            torch.testing.assert_close(got, wanted, rtol=rtol, atol=atol)


@pytest.mark.parametrize("size", [1e15, 1e-9, 1e-11])
@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_rows_of_extreme_size(backend, size, refs):
    """Only one of them says that all are copied."""
    sides = family_batch(20, 40 if refs else None, 8, torch.float32)
    sides[2 if refs else 0][7] *= size
    got, want = reduced(sides, PairSpec()), exact(sides, PairSpec(), "mean")
    for found, wanted in zip(got, want, strict=True):
        rows = [...] if not found.ndim else [[7], [k for k in range(len(found)) if k != 7]]
        for part in rows:
            scale = float(wanted[part].abs().max())
            difference = (found.double()[part] - wanted[part]).abs().max()
            assert difference <= 1e-4 * scale


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_a_row_that_is_not_finite(backend, refs):
    sides = family_batch(20, 40 if refs else None, 8, torch.float32)
    sides[0][3, 1] = math.nan
    loss, dx, *dr = reduced(sides, PairSpec())
    others = torch.arange(20) != 3
    assert loss.isnan() and dx[3].isnan().all() and all(g.isnan().all() for g in dr)
    assert dx[others].isfinite().all() if refs else dx.isnan().all()


def test_one_launch(backend):
    for sides in (family_batch(30, None, 8), family_batch(20, 70, 8)):
        with Runtime(build.module()).recorded() as calls:
            reduced(sides, PairSpec(), "mean_valid")
        assert [c.function for c in calls if c.launches] == ["cudaLaunchCooperativeKernel"]


def test_a_first_call_may_be_captured(monkeypatch, tmp_path):
    """It asks for the shared memory that a kernel has not by itself, once."""
    host = Host(monkeypatch, fresh(tmp_path), "small")
    x, y = family_batch(1000, None, 512, torch.bfloat16)
    asked = [host.calls_of(lambda: reduced_without_a_result(x, y)) for _ in range(2)]
    functions = [[call.function for call in calls] for calls in asked]
    assert functions[0].count("cudaFuncSetAttribute") == 1
    assert set(functions[0]) <= ALLOWED
    assert functions[1] == ["cudaSetDevice", "cudaLaunchCooperativeKernel"]
    assert len(host.launches_of(lambda: reduced_without_a_result(x, y))) == 1


def reduced_without_a_result(x, y):
    cuda.reduced_loss_and_gradient(Side(x, y, None), None, PairSpec(), "mean", x.dtype, True, False)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_plan_serves_other_tensors_of_its_kinds(backend, dtype, reduction):
    batches = [make_batch(33, 20, 40, SPECS["default"], dtype) for _ in range(3)]
    sides = []
    for k, given in enumerate(batches):
        x, y, r, z = given.to("cpu")
        sides.append((Side(x * (1 + k), y.flip(0), None), Side(r.roll(k, 0), z, None)))
    how = PairSpec(), reduction, dtype, True, True
    plan = cuda.plan_reduced(*sides[0], *how)
    for anchors, candidates in sides:
        want = cuda.reduced_loss_and_gradient(anchors, candidates, *how)
        for _ in range(2):
            assert all(map(torch.equal, plan(anchors, candidates), want))


def test_a_plan_of_aligned_rows_serves_rows_that_lie_askew(backend):
    """They are copied first."""
    y, how = torch.arange(40) // 4, (PairSpec(), "mean", torch.float32, True, False)
    askew = torch.randn(1601)[1:].view(40, 40)
    assert askew.data_ptr() % 16
    want = cuda.reduced_loss_and_gradient(Side(askew.clone(), y, None), None, *how)
    got = cuda.plan_reduced(Side(askew.clone(), y, None), None, *how)(Side(askew, y, None), None)
    for found, wanted in zip(got[:2], want[:2], strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-8)


def test_other_batches_go_another_road(backend):
    x, y = torch.zeros(1025, 2), torch.zeros(1025, dtype=torch.int64)
    small = Side(x[:9], y[:9], None)
    for anchors, candidates, spec in (
        (Side(x, y, None), None, PairSpec()),
        (small, Side(x, y, None), PairSpec()),
        (small, None, PairSpec(weigh.Triplet(0.2))),
    ):
        found = cuda.reduced_loss_and_gradient(
            anchors, candidates, spec, "mean", x.dtype, True, False
        )
        assert found is None


def test_the_module_refuses_what_does_not_fit(backend):
    module = build.module()

    def call(n=20, weighting=0, job="loss_and_gradient", by_tiles=False, small=True):
        spec = ((weighting, 1, 1, 0), (2.0, 50.0, 0.5, 0.1, 0.0, math.inf))
        kinds = getattr(module.Job, job), module.DType.float32, module.Precision.highest
        side = (0, 8, n, 0, 0, 0)
        return module.Call(*kinds, 8, side, None, spec, 0.0, by_tiles, small)

    for wrong in ({"n": 1025}, {"weighting": 9}, {"job": "statistics"}, {"by_tiles": True}):
        with pytest.raises(ValueError, match="small: expected False but of loss_and_gradient"):
            call(**wrong)
    with pytest.raises(ValueError, match="write_reduced: expected a call with small=True"):
        call(small=False).write_reduced(0, False, 0, module.Reduction.mean)
