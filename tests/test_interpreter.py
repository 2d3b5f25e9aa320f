"""Triton's interpreter as the tests mend it."""

import dataclasses

import numpy as np
import pytest
import torch
from cases import SPECS, make_batch
from interpreter import product, round_as_a_gpu

import ms_kernels
from ms_kernels import NTXent, Triplet, multi_similarity_loss, pair_loss

tiles = pytest.importorskip("ms_kernels.backends.triton.tiles")


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


@pytest.fixture
def overflows_are_errors(monkeypatch):
    """Other tests leave them unwatched: it takes an eighth of their time."""
    pytest.importorskip("triton")
    from triton.runtime import interpreter

    if "triton" not in ms_kernels.backends.dispatch.built() or not tiles.interpreted():
        pytest.skip("kernels are not interpreted")
    round_as_a_gpu()
    builder = interpreter.interpreter_builder
    watching = dataclasses.replace(builder.options, sanitize_overflow=True, debug=True)
    monkeypatch.setattr(builder, "options", watching)


@pytest.mark.parametrize("m", [None, 70], ids=["self", "refs"])
@pytest.mark.parametrize("weighting", [None, NTXent(), Triplet()], ids=str)
def test_no_integer_of_a_kernel_overflows(overflows_are_errors, weighting, m):
    x, y, r, z = make_batch(37, m, 20, SPECS["default"], torch.float32)
    loss = multi_similarity_loss if weighting is None else pair_loss
    chosen = {} if weighting is None else {"weighting": weighting}
    leaf = x.requires_grad_()
    loss(leaf, y, r, z, backend="triton", **chosen).backward()
    assert leaf.grad.isfinite().all()


def test_an_overflow_shows(overflows_are_errors):
    import triton
    import triton.language as tl

    @triton.jit
    def overflow(out, n):
        tl.store(out, n + n)

    with pytest.raises(Exception, match="overflow"):
        overflow[(1,)](torch.zeros(1, dtype=torch.int32), 2**31 - 1)
