"""Every build of the CPU kernels that this machine can run gives the right numbers."""

import pytest
import torch
from cases import REFS, SPECS, case_id, make_batch

import ms_kernels
from ms_kernels import multi_similarity_loss

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
        leaves = [v.to(wide).requires_grad_() for v in (x.clone(), r) if v is not None]
        refs = [] if r is None else [leaves[1], z]
        loss = multi_similarity_loss(leaves[0], y, *refs, backend=backend, **vars(spec))
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    relative = 1e-11 if dtype == torch.float64 else 2e-5
    for got, want in zip(*found, strict=True):
        tolerance = relative * max(float(want.abs().max()), 1e-3)
        torch.testing.assert_close(got.double(), want, rtol=0, atol=tolerance)


def test_the_fastest_is_the_default():
    assert cpu.instruction_set() == cpu.instruction_sets()[0]
    assert cpu.instruction_sets()[-1] == "baseline"
    with pytest.raises(ValueError, match="instruction set: expected one of.*'sse9'"):
        cpu.use_instruction_set("sse9")


def test_exp_at_its_limits(instruction_set):
    """Weights span the whole range of the exponential when beta is far out."""
    x = torch.tensor([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-1.0, 0.0]], dtype=torch.float32)
    y = torch.tensor([0, 0, 1, 2])
    for beta in (1e-3, 50.0, 800.0, 1e5):
        got = ms_kernels.row_statistics(x, y, beta=beta, epsilon=None, backend="cpu")
        want = ms_kernels.row_statistics(
            x.double(), y, beta=beta, epsilon=None, backend="reference"
        )
        torch.testing.assert_close(got.neg_lse.double(), want.neg_lse, rtol=1e-6, atol=1e-6)
