"""Fused CPU backend: similarity, mining, weighting and gradient of a tile in one C++ pass."""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import MOST_EXPONENT, Crowd, Found, Side, Term
from ms_kernels.backends.native import (
    NativeBackend,
    NativeCall,
    native_dtype,
    native_spec,
)
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Circle
from ms_kernels.settings import options

DEVICE = "cpu"
NOTE = "fused C++ kernels for CPU tensors"
MOST_SAMPLES = None
# docs/performance.md has the measurement.
CROWD = Crowd(1024, of_class=True)


def missing() -> str | None:
    """None when the compiled module is here; else why not, and the way out."""
    try:
        _module()
    except ImportError as error:
        return (
            f"the compiled module ms_kernels._cpu is not here ({error}); "
            "reinstall with a C++ compiler: pip install --no-deps . in the source folder"
        )
    return None


def refuses(spec: PairSpec, dtype: torch.dtype | None) -> str | None:
    """None when the kernels take these rules, else why not."""
    rule = spec.weighting
    # A circle's exponents dip by so much under that of the hardest pair, which sums refer to.
    if isinstance(rule, Circle) and rule.gamma * rule.m**2 > MOST_EXPONENT:
        return f"gamma * m**2 must be at most {MOST_EXPONENT}"
    return spec.unfit_options()


def loss_of_statistics(stats: RowStatistics, spec: PairSpec) -> Tensor:
    """Row losses (N,) to the bits of `loss_and_gradient`; torch's depend on its threads."""
    module = _module()
    stats = RowStatistics(*(s.contiguous() for s in stats))
    out = torch.empty_like(stats.neg_sum)
    for name, array in zip(stats._fields, stats, strict=True):
        _check_array(name, array, out.numel())
        wanted = torch.int64 if name.endswith("_kept") else out.dtype
        if array.dtype != wanted:
            raise ValueError(f"{name}: expected {wanted}, got {array.dtype}")
    module.row_loss(
        native_dtype(module, out),
        native_spec(spec, out.dtype),
        [s.data_ptr() for s in stats],
        out.data_ptr(),
        len(out),
    )
    return out


@functools.cache
def _module() -> Any:
    # After torch, whose OpenMP runtime then serves this module too.
    return importlib.import_module("ms_kernels._cpu")


# An op can be called without the checks of the public functions: these keep memory safe.
def _check_side(name: str, side: Side) -> None:
    x = side.embeddings
    if x.ndim != 2 or x.device.type != "cpu":
        raise ValueError(
            f"{name}: expected embeddings (N, D) on cpu, got {tuple(x.shape)} on {x.device}"
        )
    _check_storage(name, x)
    for kind, codes in (("labels", side.labels), ("ids", side.ids)):
        if codes is None:
            continue
        if codes.dtype != torch.int64:
            raise TypeError(f"{name}: expected {kind} of torch.int64, got {codes.dtype}")
        _check_array(f"{name}, {kind}", codes, len(x))


def _check_array(name: str, array: Tensor, count: int) -> None:
    if array.shape != (count,) or array.device.type != "cpu":
        raise ValueError(
            f"{name}: expected shape ({count},) on cpu, got {tuple(array.shape)} on {array.device}"
        )
    _check_storage(name, array)


def _check_storage(name: str, x: Tensor) -> None:
    if not x.numel():
        return
    last = sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True))
    wanted = (x.storage_offset() + last + 1) * x.element_size()
    if x.untyped_storage().nbytes() < wanted:
        raise ValueError(
            f"{name}: expected a storage of {wanted} bytes, "
            f"got {x.untyped_storage().nbytes()}; it was resized or freed"
        )


def _check_columns(rows: Side, columns: Side) -> None:
    x, r = rows.embeddings, columns.embeddings
    if x.dtype != r.dtype:
        raise TypeError(f"columns: expected dtype {x.dtype} as the rows, got {r.dtype}")
    if x.shape[1:] != r.shape[1:]:
        raise ValueError(f"columns: expected shape (M, {x.shape[-1]}), got {tuple(r.shape)}")
    if (rows.ids is None) != (columns.ids is None):
        raise ValueError("ids: expected them on both sides or on neither, got one")


class _Call(NativeCall):
    def __init__(self, job: str, rows: Side, columns: Side | None, spec: PairSpec) -> None:
        _check_side("rows", rows)
        if columns is not None:
            _check_side("columns", columns)
            _check_columns(rows, columns)
        super().__init__(rows, columns)
        module = _module()
        self.native = module.Call(
            getattr(module.Job, job),
            native_dtype(module, rows.embeddings),
            rows.embeddings.shape[1],
            self._side(rows),
            None if columns is None else self._side(columns),
            native_spec(spec, self.dtype),
        )

    def run(self) -> None:
        size = self.native.plan(torch.get_num_threads(), options.workspace_bytes)
        workspace = torch.empty(size, dtype=torch.uint8)
        self.native.run(workspace.data_ptr())

    def loss_and_gradient(self, need_dx: bool, need_dr: bool, dloss: Tensor | None) -> Found:
        if dloss is not None:
            _check_array("dloss", dloss, len(self.rows.labels))
        return super().loss_and_gradient(need_dx, need_dr, dloss)

    def term(self, term: Term | None, side: Side) -> tuple[int, ...] | None:
        if term is not None:
            for array in (*term.stats, term.dloss):
                _check_array("term", array, len(side.labels))
        return super().term(term, side)

    def _side(self, side: Side) -> tuple[int, ...]:
        return *self.embeddings(side), self.address(side.labels), self.address(side.ids)


_backend = NativeBackend(_Call)
row_statistics = _backend.row_statistics
embedding_gradient = _backend.embedding_gradient
loss_and_gradient = _backend.loss_and_gradient
