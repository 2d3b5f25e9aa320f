"""Distances as products of longer rows, for kernels that compute products, by ops of PyTorch.

-|x - r|^2 / 2 = x . r - |x|^2 / 2 - |r|^2 / 2 is the product of (-|x|^2 / 2, 1, x) and
(1, -|r|^2 / 2, r), of which the kernels make a distance or its square. So a gradient of products is
one of distances: how much all of an anchor's pairs weigh stands in it beside their sum of rows.

The rounding of such a product is that of the squares of its rows, not of their difference: rows are
shifted, so that the origin lies in their middle. It is of float32 whatever the rows are.
"""

import dataclasses
import functools
from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import Side
from ms_kernels.backends.plain.distance import middle_of
from ms_kernels.backends.plain.sides import computed, through_normalisation
from ms_kernels.rules.spec import PairSpec

# Before the numbers of a row: less half its square and 1, the other way round of a candidate.
ADDED = 2
# Rows of so many numbers begin where a kernel reads 16 bytes at once.
ALIGNED = 8


class Products(NamedTuple):
    """Both sides, so that the products of their rows tell the similarities of a spec."""

    rows: Side
    columns: Side | None
    given: tuple[Side, Side | None]
    spec: PairSpec
    is_apart: bool = False  # the columns are the rows once more

    def of_rows(self, gradient: Tensor | None) -> Tensor | None:
        """From the gradient of `rows` to that of the rows that were given."""
        return self._back(gradient, self.rows, self.given[0], is_candidate=False)

    def of_columns(self, gradient: Tensor | None) -> Tensor | None:
        return self._back(gradient, self.columns, self.given[1], is_candidate=True)

    def gradients(
        self, dx: Tensor | None, dr: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None]:
        """Of both sides that were given."""
        dx, dr = self.of_rows(dx), self.of_columns(dr)
        if self.is_apart and dx is not None and dr is not None:
            return dx.add_(dr), None
        return dx, dr

    def _back(
        self, gradient: Tensor | None, side: Side | None, given: Side | None, is_candidate: bool
    ) -> Tensor | None:
        if self.spec.distance is None or gradient is None or side is None or given is None:
            return gradient
        x, width = given.embeddings, given.embeddings.shape[1]
        own = slice(ADDED, ADDED + width)
        # The weights of its pairs are what the other side's 1 is multiplied by.
        weights = gradient[:, 1:2] if is_candidate else gradient[:, :1]
        found = gradient[:, own] - weights * side.embeddings[:, own]
        return through_normalisation(found, computed(x, self.spec.normalize), x, self.spec)


def as_products(
    rows: Side, columns: Side | None, spec: PairSpec, exchanged: bool = False
) -> Products:
    """The sides as they are where no distance is asked for; else, of a batch with itself, two too:
    each row is read in one way. Pairs of a sample with itself are told by ids.

    exchanged: the rows are the candidates.
    """
    if spec.distance is None:
        return Products(rows, columns, (rows, columns), spec)
    apart = columns is None
    if columns is None:
        if rows.ids is None:
            ids = torch.arange(len(rows.labels), device=rows.labels.device)
            rows = rows._replace(ids=ids)
        columns = rows
    x = computed(rows.embeddings, spec.normalize)
    r = x if apart else computed(columns.embeddings, spec.normalize)
    # Of the candidates alone: all who compare the same pairs know them, so that what was the
    # hardest has the same bits again, whichever anchors are at hand and whoever is first.
    middle = middle_of(x if exchanged else r)
    x, r = x - middle, r - middle
    long_rows = rows._replace(embeddings=_longer(x, is_candidate=False))
    long_columns = columns._replace(embeddings=_longer(r, is_candidate=True))
    return Products(long_rows, long_columns, (rows, columns), spec, apart)


@functools.lru_cache(maxsize=64)
def spec_of_products(spec: PairSpec) -> PairSpec:
    """Longer rows are made of unit ones where such are asked for, and are none themselves."""
    return spec if spec.distance is None else dataclasses.replace(spec, normalize=False)


def _longer(x: Tensor, is_candidate: bool) -> Tensor:
    count, width = x.shape
    longer = x.new_zeros(count, -(-(ADDED + width) // ALIGNED) * ALIGNED)
    square, one = (1, 0) if is_candidate else (0, 1)
    longer[:, square] = (x * x).sum(1) * -0.5
    longer[:, one] = 1
    longer[:, ADDED : ADDED + width] = x
    return longer
