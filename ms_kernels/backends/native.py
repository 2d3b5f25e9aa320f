"""What the compiled backends share: a call takes addresses, and gives what the interface asks."""

import math
from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import Side, Term
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import MultiSimilaritySpec, PairSpec, Spec


def compute_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def native_dtype(module: Any, x: Tensor) -> Any:
    return getattr(module.DType, str(x.dtype).removeprefix("torch."))


def native_options(spec: Spec, dtype: torch.dtype) -> tuple[float, ...]:
    """In the order of csrc/call.h; what is not given is infinite."""
    if isinstance(spec, PairSpec):  # its other options go with the rules
        spec = MultiSimilaritySpec(
            max_positive_similarity=spec.max_positive_similarity, normalize=spec.normalize
        )
    return (
        spec.alpha,
        spec.beta,
        spec.base,
        spec.narrow_epsilon(torch.finfo(dtype).max),
        math.inf if spec.max_positive_similarity is None else spec.max_positive_similarity,
        spec.normalize,
    )


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
        stats = [self.empty(n) for _ in range(4)] + [self.empty(n, torch.int64) for _ in range(2)]
        self.native.write_statistics([s.data_ptr() for s in stats])
        self.run()
        return RowStatistics(*stats)

    def gradient(self, row_term: Term | None, column_term: Term | None) -> Tensor:
        dx = self.empty(self.rows.embeddings.shape)
        columns = self.rows if self.columns is None else self.columns
        self.native.read_terms(self.term(row_term, self.rows), self.term(column_term, columns))
        self.native.write_gradients(dx.data_ptr(), 0)
        self.run()
        return dx

    def loss_and_gradient(
        self, need_dx: bool, need_dr: bool
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
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
        s = term.stats
        arrays = (s.hardest_positive, s.hardest_negative, s.pos_lse, s.neg_lse, term.dloss)
        return tuple(self.address(a.to(self.dtype)) for a in arrays)

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
