"""Triton's interpreter as the tests mend it."""

import numpy as np
import pytest
from interpreter import product


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_product_has_its_bits_whatever_the_tile(dtype):
    """As on a GPU, whose scan and gradient must find the same similarity of a pair."""
    generator = np.random.default_rng(0)
    a, b = generator.standard_normal((32, 70)), generator.standard_normal((64, 70))
    a, b = a.astype(dtype), b.astype(dtype)
    found = product(a, b.T)
    assert np.array_equal(found, product(b, a.T).T)
    assert np.array_equal(found[5:9, 3:7], product(a[5:9], np.ascontiguousarray(b[3:7].T)))
    assert np.array_equal(found, product(a[None], b.T[None])[0])
    np.testing.assert_allclose(found, a @ b.T, rtol=0, atol=1e3 * np.finfo(dtype).eps)


def test_what_is_not_finite_is_multiplied_in_silence():
    a, b = np.array([[np.inf, 1.0]], np.float32), np.array([[0.0], [1.0]], np.float32)
    assert np.isnan(product(a, b)).all()
