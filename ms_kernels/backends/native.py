"""What the compiled backends share: the functions of the interface, by calls of a module."""

from collections.abc import Callable

from torch import Tensor

from ms_kernels.backends.interface import Found, Side, Term
from ms_kernels.backends.listing import gradient_of_anchors
from ms_kernels.backends.native_call import NativeCall
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet


class NativeBackend:
    """The functions of a backend, by calls of its compiled module."""

    def __init__(self, call: Callable[[str, Side, Side | None, PairSpec], NativeCall]) -> None:
        self.call = call

    def row_statistics(
        self, anchors: Side, candidates: Side | None, spec: PairSpec
    ) -> RowStatistics:
        return self.call("statistics", anchors, candidates, spec).statistics()

    def embedding_gradient(
        self,
        rows: Side,
        columns: Side | None,
        spec: PairSpec,
        row_term: Term | None,
        column_term: Term | None,
    ) -> Tensor:
        if isinstance(spec.weighting, Triplet):  # its pairs are listed anew
            return gradient_of_anchors(self._anew, rows, columns, spec, row_term, column_term)
        return self.call("gradient", rows, columns, spec).gradient(row_term, column_term)

    def loss_and_gradient(
        self,
        anchors: Side,
        candidates: Side | None,
        spec: PairSpec,
        need_dx: bool,
        need_dr: bool,
        dloss: Tensor | None = None,
    ) -> Found:
        call = self.call("loss_and_gradient", anchors, candidates, spec)
        return call.loss_and_gradient(need_dx, need_dr, dloss)

    def _anew(
        self,
        anchors: Side,
        candidates: Side | None,
        spec: PairSpec,
        need_dx: bool,
        need_dr: bool,
        term: Term,
    ) -> Found:
        return self.loss_and_gradient(anchors, candidates, spec, need_dx, need_dr, term.dloss)
