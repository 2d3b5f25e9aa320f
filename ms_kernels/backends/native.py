"""What the compiled backends share: a call takes addresses, and gives what the interface asks."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import Found, Side, Term, compute_dtype
from ms_kernels.backends.listing import gradient_of_anchors
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet


def native_dtype(module: Any, x: Tensor) -> Any:
    return getattr(module.DType, str(x.dtype).removeprefix("torch."))


def native_spec(spec: PairSpec, dtype: torch.dtype) -> tuple[float, ...]:
    """In the order of csrc/module_call.h; what is not given is infinite."""
    cap = spec.max_positive_similarity
    shared = (math.inf if cap is None else cap, float(spec.normalize))
    return *spec.native_rules(torch.finfo(dtype).max), *shared


class NativeCall:
    """A native call and the tensors whose memory it reads; a backend makes it and runs it."""

    native: Any

    def __init__(self, rows: Side, columns: Side | None) -> None:
        self.rows, self.columns = rows, columns
        self.device = rows.embeddings.device
        self.dtype = compute_dtype(rows.embeddings)
        self.read: list[Tensor] = []

    def run(self) -> None:
        raise NotImplementedError

    def statistics(self) -> RowStatistics:
        n = len(self.rows.labels)
        numbers = [self.empty(n) for _ in range(4)]
        counts = [self.empty(n, torch.int64) for _ in range(2)]
        stats = RowStatistics._make([*numbers, *counts, self.empty(n)])
        self.native.write_statistics([s.data_ptr() for s in stats])
        self.run()
        return stats

    def gradient(self, row_term: Term | None, column_term: Term | None) -> Tensor:
        dx = self.empty(self.rows.embeddings.shape)
        columns = self.rows if self.columns is None else self.columns
        self.native.read_terms(self.term(row_term, self.rows), self.term(column_term, columns))
        self.native.write_gradients(dx.data_ptr(), 0)
        self.run()
        return dx

    def loss_and_gradient(self, need_dx: bool, need_dr: bool, dloss: Tensor | None) -> Found:
        if dloss is not None:
            self.native.read_dloss(self.address(dloss.to(self.dtype)))
        n = len(self.rows.labels)
        row_loss, kept = self.empty(n), self.empty(n, torch.int64)
        dx = self.empty(self.rows.embeddings.shape) if need_dx else None
        dr = None
        if need_dr and self.columns is not None:
            dr = self.empty(self.columns.embeddings.shape)
        self.native.write_loss(row_loss.data_ptr(), kept.data_ptr())
        self.native.write_gradients(
            0 if dx is None else dx.data_ptr(), 0 if dr is None else dr.data_ptr()
        )
        self.run()
        return row_loss, kept, dx, dr

    def empty(self, shape: int | torch.Size, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=self.dtype if dtype is None else dtype, device=self.device)

    def term(self, term: Term | None, side: Side) -> tuple[int, ...] | None:
        if term is None:
            return None
        return tuple(
            self.address(a if a.dtype == torch.int64 else a.to(self.dtype))
            for a in (*term.stats, term.dloss)
        )

    def embeddings(self, side: Side) -> tuple[int, int, int]:
        """Address, stride of a row, number of rows; the elements of a row are neighbours."""
        x = side.embeddings
        if x.shape[1] > 1 and x.stride(1) != 1:
            x = x.contiguous()
        self.read.append(x)
        return x.data_ptr(), x.stride(0), len(x)

    def address(self, array: Tensor | None) -> int:
        if array is None:
            return 0
        array = array.contiguous()
        self.read.append(array)  # alive until the call is over
        return array.data_ptr()


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
