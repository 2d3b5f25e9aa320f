"""Loss and statistics of every backend against the float64 reference, by error budget."""

import pytest
from cases import (
    BATCH_STEPS,
    DTYPES,
    EACH_BACKEND,
    REFS,
    SPECS,
    case_id,
    make_batch,
)
from judge import check_forward


@EACH_BACKEND
@pytest.mark.parametrize(("name", "shape", "dtype"), BATCH_STEPS, ids=case_id)
def test_batch(backend, dtype, shape, name):
    n, d = shape
    check_forward(make_batch(n, None, d, SPECS[name], dtype), SPECS[name], dtype, backend)


@EACH_BACKEND
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", REFS, ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined", "raw"])
def test_refs(backend, dtype, shape, name):
    check_forward(make_batch(*shape, SPECS[name], dtype), SPECS[name], dtype, backend)
