"""Loss and statistics of every backend against the float64 reference, by error budget."""

import pytest
import rounding
import torch
from cases import BATCH_CASES, DTYPES, REFS, SPECS, assert_within_budget, case_id, make_batch

import ms_kernels
from ms_kernels import reference


def check(batch, spec, dtype, backend):
    x, y, r, z = batch
    options = vars(spec)
    wide = None if r is None else r.double()
    floors = rounding.of_spec(batch, spec)
    exact = reference.row_statistics(x.double(), y, wide, z, **options)
    got = ms_kernels.row_statistics(x, y, r, z, backend=backend, **options)
    for k, floor in enumerate(floors.statistics(exact)):
        assert_within_budget(got[k], None, exact[k], floor)
    assert torch.equal(got.pos_kept, exact.pos_kept)
    assert torch.equal(got.neg_kept, exact.neg_kept)

    for reduction in ("none", "mean", "sum", "mean_valid"):
        exact_loss = reference.multi_similarity_loss(
            x.double(), y, wide, z, reduction=reduction, **options
        )
        loss = ms_kernels.multi_similarity_loss(
            x, y, r, z, reduction=reduction, backend=backend, **options
        )
        assert loss.dtype == dtype
        assert_within_budget(loss, None, exact_loss, floors.loss(reduction))


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
