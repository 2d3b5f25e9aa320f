"""The error budget of TF32 products, tried on dense code: right code passes, wrong code fails."""

import pytest
import torch
from tf32 import DenseTf32, assert_unbiased, check_similarities, cut, pairs, rounded
from tf32 import similarity_errors as errors_of

from ms_kernels import reference


def test_rounding_is_to_nearest_with_ties_away_from_zero():
    ulp = 2.0**-10
    x = torch.tensor([1, 1 + ulp, 1 + ulp / 2, -1 - ulp / 2, 1 + 0.49 * ulp, 2 - ulp / 2, 0.0])
    want = torch.tensor([1, 1 + ulp, 1 + ulp, -1 - ulp, 1, 2, 0.0])
    assert torch.equal(rounded(x), want)
    y = torch.randn(10_000, generator=torch.Generator().manual_seed(0)) * 1e-3
    error = (rounded(y) - y).abs()
    assert torch.equal(rounded(rounded(y)), rounded(y))
    assert (error <= (y - cut(y)).abs()).all() and (cut(y).abs() <= y.abs()).all()
    assert (error <= 2.0**-11 * y.abs()).all()
    odd = torch.tensor([float("inf"), -float("inf"), float("nan")])
    assert torch.equal(rounded(odd)[:2], odd[:2]) and rounded(odd)[2].isnan()


def test_the_simulated_dense_code_takes_all_products_so():
    x = torch.randn(8, 5).requires_grad_()
    with DenseTf32() as mode:
        loss = reference.multi_similarity_loss(x, torch.arange(8) // 2)
        loss.backward()
    assert mode.products == 3  # the similarities, and a gradient of either operand


def dense(operand, x, *rest):
    with DenseTf32(operand):
        return reference.row_statistics(x, *rest)


def test_the_check_passes_where_operands_are_rounded():
    """Other bits than those of the judge: rows are rounded before they are normalised."""
    check_similarities(lambda x, y, r, z: dense(rounded, rounded(x), y, rounded(r), z))


@pytest.mark.parametrize("sides", ["both", "one"])
def test_the_check_fails_where_operands_are_cut(sides):
    x, r = pairs(512, 128)

    def statistics(x, y, r, z):
        if sides == "one":  # rounded, so that a cut leaves them as they are
            r = rounded(torch.nn.functional.normalize(r, dim=1))
        return dense(cut, x, y, r, z)

    errors = errors_of(statistics, x, r)
    assert errors.mean() < -1e-4
    with pytest.raises(AssertionError, match="that of chance"):
        assert_unbiased(errors, 30.0)
    with pytest.raises(AssertionError):
        check_similarities(statistics)
