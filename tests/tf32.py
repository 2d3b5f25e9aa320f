"""TF32 products on the CPU: what a dense code that rounds its operands errs, and how a bias shows.

A tensor core reads the upper 19 bits of a float32 number. Operands that nobody rounded are cut
towards zero, and so is every similarity: its error has a mean, which a tolerance wide enough for
the spread would hide.
"""

import contextlib

import torch
from cases import SPECS, MultiSimilarityOptions, make_batch
from torch.utils._python_dispatch import TorchDispatchMode

import ms_kernels
from ms_kernels import reference

KEPT_BITS = -(1 << 13)  # of a float32 number: sign, exponent and 10 of the 23 fraction bits
HALF_ULP = 1 << 12

# Without mining: TF32 carries pairs over a threshold, in the dense code as in any other.
UNMINED = {
    "unmined": SPECS["unmined"],
    "raw": MultiSimilarityOptions(alpha=0.7, beta=3.0, epsilon=None, normalize=False),
}


def cut(x):
    """float32 as a tensor core reads it."""
    return (x.view(torch.int32) & KEPT_BITS).view(torch.float32)


def rounded(x):
    """float32 to the nearest TF32 number, ties away from zero, as cvt.rna.tf32.f32 gives it."""
    nearest = ((x.view(torch.int32) + HALF_ULP) & KEPT_BITS).view(torch.float32)
    return torch.where(x.isfinite(), nearest, x)


def to_bfloat16(x):
    return x.bfloat16().float()


# How an operand of a product is read at each precision of torch that takes fewer bits.
OPERANDS = {"high": rounded, "medium": to_bfloat16}


class DenseTf32(TorchDispatchMode):
    """Dense PyTorch whose float32 matrix products round their operands and then lose nothing.

    Products of a backward pass are taken so too, where it runs under the mode.
    """

    def __init__(self, operand=rounded):
        super().__init__()
        self.operand = operand
        self.products = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        aten = torch.ops.aten
        wide = all(getattr(v, "dtype", None) == torch.float32 for v in arguments)
        if function not in (aten.mm.default, aten.bmm.default) or not wide:
            assert function not in (aten.addmm.default, aten.baddbmm.default)
            return function(*arguments, **(options or {}))
        self.products += 1
        left, right = (self.operand(v.contiguous()).double() for v in arguments)
        return function(left, right).float()


@contextlib.contextmanager
def float32_products(precision):
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def pairs(count, depth, seed=0):
    """Rows x and r of which x[i] and r[i] are alike, similarities from about 0.4 to 0.9."""
    generator = torch.Generator().manual_seed(seed)
    x, noise = torch.randn(2, count, depth, generator=generator)
    return x, x + noise * torch.linspace(0.4, 2.0, count)[:, None]


def statistics_by(backend, device="cpu"):
    """row_statistics of a backend, from CPU tensors to CPU tensors."""

    def row_statistics(*pairs):
        found = ms_kernels.row_statistics(*(v.to(device) for v in pairs), backend=backend)
        return reference.RowStatistics(*(v.cpu() for v in found))

    return row_statistics


def similarity_errors(row_statistics, x, r):
    """Of every pair of x[i] with r[i], from statistics: its only positive is its hardest."""
    label = torch.arange(len(x))
    exact = reference.row_statistics(x.double(), label, r.double(), label)
    found = row_statistics(x, label, r, label)
    return found.hardest_positive.double() - exact.hardest_positive


def assert_unbiased(errors, standard_errors=3.0):
    """`errors` are independent; three standard errors of their mean are what chance allows."""
    mean = float(errors.mean())
    allowed = standard_errors * float(errors.std()) / len(errors) ** 0.5
    assert abs(mean) <= allowed, f"mean error {mean:.2e} exceeds {allowed:.2e}, that of chance"


def check_similarities(row_statistics, count=512, depth=128):
    """`row_statistics` at precision "high": no bias, and at most twice the dense code's error."""
    x, r = pairs(count, depth)
    with float32_products("high"):
        errors = similarity_errors(row_statistics, x, r)
    with DenseTf32():
        dense = similarity_errors(reference.row_statistics, x, r)
    assert errors.abs().max() > 2.0**-20, "products are more accurate than TF32 can be"
    assert_unbiased(errors)
    assert_within_twice(errors, dense, torch.zeros_like(errors))
    assert errors.square().mean().sqrt() <= 1.3 * dense.square().mean().sqrt()


def assert_within_twice(got, dense, exact):
    """At most twice the largest error of the dense code, or two ulp of the largest number."""
    got, dense, exact = (v.double() for v in (got, dense, exact))
    finite = exact.isfinite()
    assert torch.equal(got.isfinite(), finite) and torch.equal(dense.isfinite(), finite)
    assert torch.equal(got[~finite], exact[~finite])
    if not finite.any():
        return
    got, dense, exact = (v[finite] for v in (got, dense, exact))
    allowed = max(2 * (dense - exact).abs().max(), 2.0**-22 * exact.abs().max())
    worst = (got - exact).abs().max()
    assert worst <= allowed, f"error {worst:.3e} exceeds the budget {allowed:.3e}"


def step(x, y, r, z, statistics, function, reduction, options):
    """Statistics and loss of each row, and gradients of the reduced loss."""
    leaves = [v.clone().requires_grad_() for v in (x, r) if v is not None]
    refs = (leaves[1], z) if r is not None else ()
    loss = function(leaves[0], y, *refs, reduction=reduction, **options)
    incoming = torch.linspace(0.5, 2, loss.numel()).view(loss.shape)
    found = torch.autograd.grad(loss, leaves, incoming.to(loss))
    rows = function(x, y, r, z, reduction="none", **options)
    return [*statistics(x, y, r, z, **options)[:4], rows, *found]


def check_step(shape, name, backend, reduction, device="cpu", precision="high"):
    """Statistics, losses and gradients, by the budget of dense code of that precision."""
    n, m, d = shape
    spec = UNMINED[name]
    x, y, r, z = make_batch(n, m, d, spec, torch.float32)
    wide = None if r is None else r.double()
    chosen = vars(spec)

    dense = reference.row_statistics, reference.multi_similarity_loss
    exact = step(x.double(), y, wide, z, *dense, reduction, chosen)
    with DenseTf32(OPERANDS[precision]) as mode:
        same = step(x, y, r, z, *dense, reduction, chosen)
    assert mode.products >= 5  # three forward passes and both operands of a backward one
    ours = ms_kernels.row_statistics, ms_kernels.multi_similarity_loss
    with float32_products(precision):
        moved = (v if v is None else v.to(device) for v in (x, y, r, z))
        got = step(*moved, *ours, reduction, {**chosen, "backend": backend})
    for g, s, e in zip((v.cpu() for v in got), same, exact, strict=True):
        assert g.dtype == torch.float32
        assert_within_twice(g, s, e)
