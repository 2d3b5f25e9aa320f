"""Every build of the CPU kernels that this machine can run gives the right numbers."""

import pytest
import rounding
import torch
from cases import REFS, SPECS, assert_within_budget, case_id, make_batch

import ms_kernels
from ms_kernels import multi_similarity_loss
from ms_kernels.backends.native_call import native_spec
from ms_kernels.rules.spec import PairSpec

cpu = pytest.importorskip("ms_kernels._cpu")


@pytest.fixture(params=cpu.instruction_sets())
def instruction_set(request):
    best = cpu.instruction_set()
    cpu.use_instruction_set(request.param)
    yield request.param
    cpu.use_instruction_set(best)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=case_id)
@pytest.mark.parametrize("shape", [(5, 3), (97, 64), (257, 16), (389, 200)], ids=case_id)
@pytest.mark.parametrize("name", SPECS)
def test_batch(instruction_set, shape, dtype, name):
    n, d = shape
    compare(make_batch(n, None, d, SPECS[name], dtype), SPECS[name], dtype)


@pytest.mark.parametrize("shape", REFS[:4], ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined"])
def test_refs(instruction_set, shape, name):
    compare(make_batch(*shape, SPECS[name], torch.float64), SPECS[name], torch.float64)


def compare(batch, spec, dtype):
    x, y, r, z = batch
    found = []
    for wide, backend in ((dtype, "cpu"), (torch.float64, "reference")):
        leaves = [v.to(wide, copy=True).requires_grad_() for v in (x, r) if v is not None]
        refs = [] if r is None else [leaves[1], z]
        loss = multi_similarity_loss(leaves[0], y, *refs, backend=backend, **vars(spec))
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for got, want, floor in zip(*found, rounding.of_spec(batch, spec).step("mean"), strict=True):
        assert_within_budget(got, None, want, floor)


def test_the_fastest_is_the_default():
    assert cpu.instruction_set() == cpu.instruction_sets()[0]
    assert cpu.instruction_sets()[-1] == "baseline"
    with pytest.raises(ValueError, match="instruction set: expected one of.*'sse9'"):
        cpu.use_instruction_set("sse9")


def exp(x):
    out = torch.full_like(x, torch.nan)
    dtype = cpu.DType.float64 if x.dtype == torch.float64 else cpu.DType.float32
    cpu.exp(dtype, x.data_ptr(), out.data_ptr(), len(x))
    return out


def test_exp_errs_by_less_than_an_ulp(instruction_set):
    most = 2.0 if instruction_set == "baseline" else 1.0  # without fused multiply-adds
    generator = torch.Generator().manual_seed(0)
    for low, high in ((-86.0, 88.0), (-1.0, 1.0), (-1e-6, 1e-6)):
        x = torch.rand(200_001, generator=generator, dtype=torch.float64) * (high - low) + low
        x = x.float()
        want = x.double().exp()
        ulp = 2.0 ** (torch.frexp(want.float())[1] - 24)
        assert ((exp(x).double() - want).abs() / ulp).max() < most
    x = torch.rand(200_001, generator=generator, dtype=torch.float64) * 1400 - 700
    ulp = 2.0 ** (torch.frexp(x.exp())[1].double() - 53)  # torch.exp may itself err by one
    assert ((exp(x) - x.exp()).abs() / ulp).max() <= most + 1


def test_exp_at_its_limits(instruction_set):
    far = torch.tensor([0.0, -0.0, -86.1, -1e30, -torch.inf, 88.0, 200.0, torch.inf])
    got = exp(far)
    assert got[0] == 1 and got[1] == 1 and not got[2:5].any()
    assert torch.equal(got[6:], got[5].expand(2)) and got[5].isfinite()


def test_weights_span_the_range_of_exp(instruction_set):
    """Weights span the whole range of the exponential when beta is far out."""
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float32)
    y = torch.tensor([0, 0, 1, 2])
    for beta in (1e-3, 50.0, 800.0, 1e5):
        got = ms_kernels.row_statistics(x, y, beta=beta, epsilon=None, backend="cpu")
        want = ms_kernels.row_statistics(
            x.double(), y, beta=beta, epsilon=None, backend="reference"
        )
        torch.testing.assert_close(got.neg_lse.double(), want.neg_lse, rtol=1e-6, atol=1e-6)


def empty_statistics(n):
    numbers = [torch.zeros(n) for _ in range(5)]
    counts = [torch.zeros(n, dtype=torch.int64) for _ in range(2)]
    return [*numbers[:4], *counts, numbers[4]]


def planned_call(x, y, stats):
    side = (x.data_ptr(), x.stride(0), len(x), y.data_ptr(), 0)
    spec = native_spec(PairSpec(), torch.float32)
    call = cpu.Call(cpu.Job.statistics, cpu.DType.float32, x.shape[1], side, None, spec)
    call.write_statistics([s.data_ptr() for s in stats])
    return call


def test_a_call_keeps_the_build_that_planned_it():
    x, y = torch.randn(200, 33), torch.arange(200) // 4
    best, found = cpu.instruction_set(), []
    for late in cpu.instruction_sets():
        stats = empty_statistics(200)
        call = planned_call(x, y, stats)
        workspace = torch.empty(call.plan(1, 1 << 20), dtype=torch.uint8)
        cpu.use_instruction_set(late)
        call.run(workspace.data_ptr())
        cpu.use_instruction_set(best)
        found.append(stats)
    for stats in found:
        assert all(torch.equal(a, b) for a, b in zip(stats, found[0], strict=True))


def test_a_call_runs_only_in_the_workspace_it_planned():
    x, y = torch.randn(20, 3), torch.arange(20) // 4
    call = planned_call(x, y, empty_statistics(20))
    with pytest.raises(ValueError, match=r"run: expected a call of plan\(\)"):
        call.run(64)
    call.plan(1, 1 << 20)
    with pytest.raises(ValueError, match="workspace: expected the address of .* got 0"):
        call.run(0)


def test_what_a_call_is_told_fits_its_job():
    """The rows' arrays, read in the order of other columns, would be read past their ends."""
    spec, rows = native_spec(PairSpec(), torch.float32), (0, 3, 0, 0, 0)

    def call(job, columns):
        return cpu.Call(getattr(cpu.Job, job), cpu.DType.float32, 3, rows, columns, spec)

    with pytest.raises(ValueError, match="read_known: expected a call of statistics"):
        call("loss_and_gradient", rows).read_known((0, 0, 0))
    for job, columns in (("statistics", rows), ("loss_and_gradient", None)):
        with pytest.raises(ValueError, match="anchor_both: expected loss_and_gradient of two"):
            call(job, columns).anchor_both()
    planned = call("loss_and_gradient", rows)
    planned.plan(1, 1 << 20)
    with pytest.raises(ValueError, match="anchor_both: expected a call that is not planned yet"):
        planned.anchor_both()


@pytest.mark.parametrize(
    ("codes", "error"),
    [
        ((5.5, 0, 1, 0), TypeError),
        ((5, 0.0, 1, 0), TypeError),
        ((99, 0, 1, 0), ValueError),
        ((5, 0, 1, 99), ValueError),
    ],
    ids=str,
)
def test_a_code_is_a_whole_number_that_exists(codes, error):
    """A code cut to a whole number would be that of another rule."""
    spec = codes, (0.2, 0.0, 0.0, 0.0, 0.0, 1.0)
    with pytest.raises(
        error, match="incompatible constructor arguments|codes? that exists?, got 99"
    ):
        cpu.Call(cpu.Job.statistics, cpu.DType.float32, 3, (0, 3, 0, 0, 0), None, spec)
