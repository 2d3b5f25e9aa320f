"""Loss and statistics of every backend against the float64 reference, by error budget."""

import functools

import pytest
import rounding
import torch
from cases import (
    BATCH_STEPS,
    DTYPES,
    EACH_BACKEND,
    REFS,
    SPECS,
    assert_within_budget,
    case_id,
    make_batch,
)

import ms_kernels
from ms_kernels import reference


@functools.lru_cache(maxsize=4)
def exact_and_floors(batch, spec):
    """Of the statistics, and by reduction of the loss."""
    x, y, r, z = batch
    sides = x.double(), y, None if r is None else r.double(), z
    floors = rounding.of_spec(batch, spec)
    exact = reference.row_statistics(*sides, **vars(spec))
    losses = {}
    for reduction in ("none", "mean", "sum", "mean_valid"):
        loss = reference.multi_similarity_loss(*sides, reduction=reduction, **vars(spec))
        losses[reduction] = loss, floors.loss(reduction)
    return exact, floors.statistics(exact), losses


def check(batch, spec, dtype, backend):
    exact, floors, losses = exact_and_floors(batch, spec)
    got = ms_kernels.row_statistics(*batch, backend=backend, **vars(spec))
    for k, floor in enumerate(floors):
        assert_within_budget(got[k], None, exact[k], floor)
    assert torch.equal(got.pos_kept, exact.pos_kept)
    assert torch.equal(got.neg_kept, exact.neg_kept)

    for reduction, (exact_loss, floor) in losses.items():
        loss = ms_kernels.multi_similarity_loss(
            *batch, reduction=reduction, backend=backend, **vars(spec)
        )
        assert loss.dtype == dtype
        assert_within_budget(loss, None, exact_loss, floor)


@EACH_BACKEND
@pytest.mark.parametrize(("name", "shape", "dtype"), BATCH_STEPS, ids=case_id)
def test_batch(backend, dtype, shape, name):
    n, d = shape
    check(make_batch(n, None, d, SPECS[name], dtype), SPECS[name], dtype, backend)


@EACH_BACKEND
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", REFS, ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined", "raw"])
def test_refs(backend, dtype, shape, name):
    check(make_batch(*shape, SPECS[name], dtype), SPECS[name], dtype, backend)
