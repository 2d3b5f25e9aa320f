"""The module against the function, and its named constants."""

import inspect
from dataclasses import fields

import pytest
import torch
from cases import MultiSimilarityOptions

import ms_kernels
from ms_kernels import MultiSimilarityLoss, multi_similarity_loss, reference

X = torch.randn(20, 8, generator=torch.Generator().manual_seed(0))
X[1] = X[0]
Y = torch.arange(20) // 4


def test_module_equals_function():
    options = dict(alpha=1.0, beta=40.0, base=0.2, epsilon=None, reduction="sum")
    assert MultiSimilarityLoss(**options)(X, Y) == multi_similarity_loss(X, Y, **options)
    refs = (X[:7], Y[:7])
    assert MultiSimilarityLoss()(X, Y, *refs) == multi_similarity_loss(X, Y, *refs)


def test_named_constants():
    paper = multi_similarity_loss(X, Y, alpha=2.0, beta=50.0, base=1.0)
    assert MultiSimilarityLoss.paper()(X, Y) == paper
    released = multi_similarity_loss(X, Y, beta=40.0, max_positive_similarity=1 - 1e-5)
    assert MultiSimilarityLoss.released()(X, Y) == released
    # Rows 0 and 1 are equal: unmined, only the rule of the released code drops that pair.
    every = MultiSimilarityLoss.released(epsilon=None)(X, Y)
    assert every != multi_similarity_loss(X, Y, beta=40.0, epsilon=None)
    assert MultiSimilarityLoss.paper(reduction="none")(X, Y).shape == (20,)


@pytest.mark.parametrize(
    "function",
    [
        multi_similarity_loss,
        ms_kernels.row_statistics,
        ms_kernels.mined_pairs,
        MultiSimilarityLoss,
        reference.multi_similarity_loss,
        reference.row_statistics,
    ],
    ids=lambda f: f"{f.__module__}.{f.__name__}",
)
def test_defaults_are_those_of_the_spec(function):
    given = inspect.signature(function).parameters
    shared = [field for field in fields(MultiSimilarityOptions) if field.name in given]
    assert {"epsilon", "max_positive_similarity", "normalize"} <= {f.name for f in shared}
    if function is not ms_kernels.mined_pairs:  # pairs do not depend on the scales
        assert len(shared) == len(fields(MultiSimilarityOptions))
    for field in shared:
        assert given[field.name].default == field.default, field.name


def test_repr_shows_every_option():
    assert "epsilon=0.1" in repr(MultiSimilarityLoss())
