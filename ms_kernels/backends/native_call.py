"""A call of a compiled module: tensors become addresses, checked, and results are allocated."""

import functools
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import Counted, Found, Known, Side, Term, compute_dtype, reads
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import DISTANCES, PairSpec


def native_dtype(module: Any, x: Tensor) -> Any:
    return getattr(module.DType, str(x.dtype).removeprefix("torch."))


@functools.lru_cache(maxsize=64)
def native_spec(
    spec: PairSpec, dtype: torch.dtype
) -> tuple[tuple[int, int, int, int], tuple[float, ...]]:
    """Codes and a flag, then options, in the order of csrc/module_call.h; what is not given is
    infinite."""
    weighting, a, b, c, mining, d, e = spec.native_rules(torch.finfo(dtype).max)
    cap = spec.max_positive_similarity
    distance = DISTANCES.index(spec.distance)
    codes = int(weighting), int(mining), int(spec.normalize), distance
    return codes, (a, b, c, d, e, math.inf if cap is None else cap)


# An op can be called without the checks of the public functions: these keep memory safe.
def check_array(name: str, array: Tensor, count: int, device: torch.device) -> None:
    if array.shape != (count,) or array.device != device:
        raise ValueError(
            f"{name}: expected shape ({count},) on {device}, "
            f"got {tuple(array.shape)} on {array.device}"
        )
    check_storage(name, array)


def _check_side(name: str, side: Side, device: torch.device) -> None:
    x = side.embeddings
    if x.ndim != 2 or x.device != device:
        raise ValueError(
            f"{name}: expected embeddings (N, D) on {device}, got {tuple(x.shape)} on {x.device}"
        )
    check_storage(name, x)
    for kind, codes in (("labels", side.labels), ("ids", side.ids)):
        if codes is None:
            continue
        if codes.dtype != torch.int64:
            raise TypeError(f"{name}: expected {kind} of torch.int64, got {codes.dtype}")
        check_array(f"{name}, {kind}", codes, len(x), device)


def _check_columns(rows: Side, columns: Side, one_dtype: bool) -> None:
    x, r = rows.embeddings, columns.embeddings
    if x.dtype != r.dtype and (one_dtype or not reads(x.dtype, r.dtype)):
        raise TypeError(f"columns: expected dtype {x.dtype} as the rows, got {r.dtype}")
    if x.shape[1:] != r.shape[1:]:
        raise ValueError(f"columns: expected shape (M, {x.shape[-1]}), got {tuple(r.shape)}")
    if (rows.ids is None) != (columns.ids is None):
        raise ValueError("ids: expected them on both sides or on neither, got one")


def extent_of(x: Tensor) -> int:
    """Elements from the first of a tensor to behind its last."""
    if x.is_contiguous():
        return x.numel()
    if not x.numel():
        return 0
    return 1 + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))


def lies_as_read(x: Tensor) -> bool:
    """Whether the elements of a row, or of an array, are neighbours."""
    return x.is_contiguous() or (x.ndim == 2 and (x.shape[1] <= 1 or x.stride(1) == 1))


def check_storage(name: str, x: Tensor) -> None:
    wanted = (x.storage_offset() + extent_of(x)) * x.element_size() if x.numel() else 0
    got = x.untyped_storage().nbytes()
    if got < wanted:
        raise ValueError(
            f"{name}: expected a storage of {wanted} bytes, got {got}; it was resized or freed"
        )


class Output(NamedTuple):
    """What a plan allocates for each call."""

    shape: torch.Size
    dtype: torch.dtype


# Stands for an address that is not known when a call is planned: not null, and as aligned as those
# of an allocator.
LATER = 256


class NativeCall:
    """A native call and the tensors whose memory it reads; a backend makes it and runs it."""

    native: Any

    def __init__(self, rows: Side, columns: Side | None, kind: str, one_dtype: bool = True) -> None:
        """kind: of the device that the kernels read, "cpu" or "cuda". one_dtype: whether they read
        both sides in that of the rows alone."""
        found = rows.embeddings.device
        self.device = found if found.type == kind else torch.device(kind)
        _check_side("rows", rows, self.device)
        if columns is not None:
            _check_side("columns", columns, self.device)
            _check_columns(rows, columns, one_dtype)
        self.rows, self.columns = rows, columns
        self.dtype = compute_dtype(rows.embeddings)
        self.read: list[Tensor] = []

    def run(self) -> None:
        raise NotImplementedError

    def statistics(self) -> RowStatistics:
        stats = self.expect_statistics()
        self.run()
        return stats

    def read_known(self, known: Known) -> None:
        count = len(self.rows.labels)
        addresses = []
        for name, array in zip(known._fields, known, strict=True):
            if array is not None:
                check_array(f"known, {name}", array, count, self.device)
                array = array.to(self.dtype)
            addresses.append(self.address(array))
        self.native.read_known(addresses)

    def gradient(self, row_term: Term | None, column_term: Term | None) -> Tensor:
        dx = self.empty(self.rows.embeddings.shape)
        columns = self.rows if self.columns is None else self.columns
        self.native.read_terms(self.term(row_term, self.rows), self.term(column_term, columns))
        self.native.write_gradients(dx.data_ptr(), 0)
        self.run()
        return dx

    def gradients_and_weights(
        self, term: Term, need_dx: bool, need_dr: bool
    ) -> tuple[Tensor | None, Tensor | None, Tensor]:
        """Of the rows as anchors: the gradients of both sides, and `WeightSums` (4,)."""
        numbers = self.term(term, self.rows)
        self.native.read_terms(numbers, numbers if self.columns is None else None)
        dx, dr = self.write_gradients(need_dx, need_dr)
        sums = self.expect_weight_sums()
        self.run()
        return dx, dr, sums.to(self.dtype)

    def expect_weight_sums(self) -> Tensor:
        raise NotImplementedError

    def expect_statistics(self) -> RowStatistics:
        n = len(self.rows.labels)
        numbers = [self.empty(n) for _ in range(4)]
        counts = [self.empty(n, torch.int64) for _ in range(2)]
        stats = RowStatistics._make([*numbers, *counts, self.empty(n)])
        self.native.write_statistics([s.data_ptr() for s in stats])
        return stats

    def loss_and_gradient(self, need_dx: bool, need_dr: bool, dloss: Tensor | None) -> Found:
        if dloss is not None:
            check_array("dloss", dloss, len(self.rows.labels), self.device)
            self.native.read_dloss(self.address(dloss.to(self.dtype)))
        n = len(self.rows.labels)
        row_loss, kept = self.empty(n), self.empty(n, torch.int64)
        dx, dr = self.write_gradients(need_dx, need_dr)
        self.native.write_loss(row_loss.data_ptr(), kept.data_ptr())
        self.run()
        return row_loss, kept, dx, dr

    def counted_loss(self, need_dx: bool, need_dr: bool, dloss: Tensor | None) -> Counted:
        """As loss_and_gradient, with the statistics of its sweep."""
        stats = self.expect_statistics()
        losses, _, dx, dr = self.loss_and_gradient(need_dx, need_dr, dloss)
        return Counted(losses, stats, dx, dr, None)

    def expect_gradients(self, need_dx: bool, need_dr: bool) -> tuple[Output | None, Output | None]:
        """As write_gradients, for a plan."""
        need_dr = need_dr and self.columns is not None
        self.native.write_gradients(LATER if need_dx else 0, LATER if need_dr else 0)
        sides = (need_dx, self.rows), (need_dr, self.columns)
        dx, dr = (
            Output(side.embeddings.shape, self.dtype) if needed and side is not None else None
            for needed, side in sides
        )
        return dx, dr

    def write_gradients(self, need_dx: bool, need_dr: bool) -> tuple[Tensor | None, Tensor | None]:
        """Where the call writes those of both sides, if they are wanted."""
        dx = self.empty(self.rows.embeddings.shape) if need_dx else None
        dr = None
        if need_dr and self.columns is not None:
            dr = self.empty(self.columns.embeddings.shape)
        self.native.write_gradients(
            0 if dx is None else dx.data_ptr(), 0 if dr is None else dr.data_ptr()
        )
        return dx, dr

    def empty(self, shape: int | torch.Size, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=self.dtype if dtype is None else dtype, device=self.device)

    def term(self, term: Term | None, side: Side) -> tuple[int, ...] | None:
        if term is None:
            return None
        for name, array in zip(
            (*term.stats._fields, "dloss"), (*term.stats, term.dloss), strict=True
        ):
            check_array(f"term, {name}", array, len(side.labels), self.device)
            counts = name.endswith("_kept")
            if array.is_floating_point() == counts or (counts and array.dtype != torch.int64):
                wanted = "torch.int64" if counts else "floating-point numbers"
                raise TypeError(f"term, {name}: expected {wanted}, got {array.dtype}")
        return tuple(
            self.address(a if a.dtype == torch.int64 else a.to(self.dtype))
            for a in (*term.stats, term.dloss)
        )

    def embeddings(self, side: Side) -> tuple[int, int, int]:
        """Address, stride of a row, number of rows; the elements of a row are neighbours."""
        x = side.embeddings
        if not lies_as_read(x):
            x = x.contiguous()
        self.read.append(x)
        return x.data_ptr(), x.stride(0), len(x)

    def address(self, array: Tensor | None) -> int:
        if array is None:
            return 0
        array = array.contiguous()
        self.read.append(array)  # alive until the call is over
        return array.data_ptr()
