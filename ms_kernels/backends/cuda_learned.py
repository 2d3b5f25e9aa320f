"""Statistics and gradients of the CUDA kernels where options of the weighting rule learn."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from ms_kernels.backends.interface import Side, Term
from ms_kernels.backends.native_call import NativeCall
from ms_kernels.backends.products import as_products
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import WeightSums
from ms_kernels.rules.weighting import Triplet


class LearnedOptions(NamedTuple):
    """These functions of the interface, by calls of the compiled module, which reads the options
    where they lie."""

    call: Callable[[str, Side, Side | None, PairSpec, Tensor], NativeCall]

    def statistics(
        self, anchors: Side, candidates: Side | None, spec: PairSpec, option_values: Tensor
    ) -> RowStatistics:
        """As row_statistics."""
        sides = as_products(anchors, candidates, spec)
        return self.call("statistics", sides.rows, sides.columns, spec, option_values).statistics()

    def gradient(
        self,
        anchors: Side,
        candidates: Side | None,
        spec: PairSpec,
        option_values: Tensor,
        term: Term,
        need_dx: bool,
        need_dr: bool,
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Gradients of both sides and sums of weights, in one launch."""
        sides = as_products(anchors, candidates, spec)
        needed = need_dx, need_dx if sides.is_apart else need_dr
        given = sides.rows, sides.columns, spec, option_values
        if isinstance(spec.weighting, Triplet):  # its pairs are listed anew, and none add up
            dx = dr = None
            if any(needed):
                call = self.call("loss_and_gradient", *given)
                _, _, dx, dr = call.loss_and_gradient(*needed, term.dloss)
            sums = term.dloss.new_zeros(len(WeightSums._fields))
        else:
            dx, dr, sums = self.call("gradient", *given).gradients_and_weights(term, *needed)
        return *sides.gradients(dx, dr), sums
