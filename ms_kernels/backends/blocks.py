"""Blocks of candidates, by functions that a backend has of all of them at once.

Where mining asks for no hardest pair, and the sum of positives for nothing of the negatives, blocks
need to know nothing of one another: of each the kernels give the statistics that it has alone.
"""

from collections.abc import Callable
from dataclasses import astuple
from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import Known, Side, Term
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet

Statistics = Callable[[Side, Side | None, PairSpec], RowStatistics]
Hardest = Callable[[Side, Side | None, PairSpec], tuple[Tensor, Tensor]]


def hardest_by(row_statistics: Statistics) -> Hardest:
    """hardest_of_block of the interface, of mining that asks for one hardest negative."""

    def hardest_of_block(
        anchors: Side, candidates: Side | None, spec: PairSpec
    ) -> tuple[Tensor, Tensor]:
        """Hardest pairs of each anchor that these candidates offer; nothing is summed."""
        least, most, *_ = row_statistics(anchors, candidates, spec.keeping_nothing)
        return least, most[:, None]

    return hardest_of_block


class BlocksApart(NamedTuple):
    """These functions of the interface, by others of a backend."""

    row_statistics: Statistics
    learned_gradient: Callable[
        [Side, Side | None, PairSpec, Tensor, Term, bool, bool],
        tuple[Tensor | None, Tensor | None, Tensor],
    ]

    def takes(self, spec: PairSpec) -> bool:
        """Whether blocks need to know nothing of one another."""
        rule = spec.weighting
        return not (spec.mining.needs_hardest or rule.pos_follows_neg or isinstance(rule, Triplet))

    def statistics(
        self, anchors: Side, candidates: Side | None, spec: PairSpec, known: Known | None
    ) -> RowStatistics:
        return self.row_statistics(anchors, candidates, spec)

    def weight_sums(
        self, anchors: Side, candidates: Side | None, spec: PairSpec, term: Term
    ) -> Tensor:
        """`WeightSums` (4,) of the anchors' pairs with these candidates."""
        # Numbers written by kernels: a copy from the host would be waited for.
        numbers = [term.dloss.new_full((), number) for number in astuple(spec.weighting)]
        given = anchors, candidates, spec, torch.stack(numbers), term
        return self.learned_gradient(*given, False, False)[2]
