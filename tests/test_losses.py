"""The module against the function, and its named constants."""

import torch

from ms_kernels import MultiSimilarityLoss, multi_similarity_loss

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


def test_repr_shows_every_option():
    assert "epsilon=0.1" in repr(MultiSimilarityLoss())
