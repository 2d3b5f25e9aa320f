"""Loss and statistics of every backend against the float64 reference, by error budget."""

import pytest
import torch
from cases import (
    BATCH_CASES,
    DTYPES,
    REFS,
    SPECS,
    assert_within_budget,
    case_id,
    factor_of,
    make_batch,
)

import ms_kernels
from ms_kernels import reference


def check(batch, spec, dtype, backend):
    x, y, r, z = batch
    options = vars(spec)
    wide = None if r is None else r.double()
    exact = reference.row_statistics(x.double(), y, wide, z, **options)
    dense = reference.row_statistics(x, y, r, z, **options)
    got = ms_kernels.row_statistics(x, y, r, z, backend=backend, **options)
    for name in ("hardest_positive", "hardest_negative", "pos_lse", "neg_lse"):
        wanted = getattr(exact, name)
        assert_within_budget(getattr(got, name), getattr(dense, name), wanted, factor_of(dtype))
    assert torch.equal(got.pos_kept, exact.pos_kept)
    assert torch.equal(got.neg_kept, exact.neg_kept)

    for reduction in ("none", "mean", "sum", "mean_valid"):
        exact_loss = reference.multi_similarity_loss(
            x.double(), y, wide, z, reduction=reduction, **options
        )
        dense_loss = reference.multi_similarity_loss(x, y, r, z, reduction=reduction, **options)
        loss = ms_kernels.multi_similarity_loss(
            x, y, r, z, reduction=reduction, backend=backend, **options
        )
        assert loss.dtype == dtype
        assert_within_budget(loss, dense_loss, exact_loss, factor_of(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize(("name", "shape"), BATCH_CASES, ids=case_id)
def test_batch(backend, dtype, shape, name):
    n, d = shape
    check(make_batch(n, None, d, SPECS[name], dtype), SPECS[name], dtype, backend)


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", REFS, ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined", "raw"])
def test_refs(backend, dtype, shape, name):
    check(make_batch(*shape, SPECS[name], dtype), SPECS[name], dtype, backend)
