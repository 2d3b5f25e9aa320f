"""Fused CPU backend: similarity, mining, weighting and gradient of a tile in one C++ pass."""

import functools
import importlib
import math
from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import Side, Term
from ms_kernels.reference import RowStatistics
from ms_kernels.settings import options
from ms_kernels.spec import MultiSimilaritySpec


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


def row_statistics(
    anchors: Side, candidates: Side | None, spec: MultiSimilaritySpec
) -> RowStatistics:
    """Statistics of each anchor; candidates None means the anchors themselves."""
    call = _Call("statistics", anchors, candidates, spec)
    n = len(anchors.labels)
    stats = [torch.empty(n, dtype=call.dtype) for _ in range(4)]
    stats += [torch.empty(n, dtype=torch.int64) for _ in range(2)]
    call.native.write_statistics([s.data_ptr() for s in stats])
    call.run()
    return RowStatistics(*stats)


def embedding_gradient(
    rows: Side,
    columns: Side | None,
    spec: MultiSimilaritySpec,
    row_term: Term | None,
    column_term: Term | None,
) -> Tensor:
    """Gradient (N, D) with respect to the rows' embeddings, through their normalisation."""
    call = _Call("gradient", rows, columns, spec)
    dx = torch.empty(rows.embeddings.shape, dtype=call.dtype)
    others = len(rows.labels) if columns is None else len(columns.labels)
    call.native.read_terms(call.term(row_term, len(rows.labels)), call.term(column_term, others))
    call.native.write_gradients(dx.data_ptr(), 0)
    call.run()
    return dx


def loss_and_gradient(
    anchors: Side, candidates: Side | None, spec: MultiSimilaritySpec, need_dx: bool, need_dr: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Row losses (N,), kept pairs of each row (N,), gradients of the losses' sum."""
    call = _Call("loss_and_gradient", anchors, candidates, spec)
    row_loss = torch.empty(len(anchors.labels), dtype=call.dtype)
    kept = torch.empty(len(anchors.labels), dtype=torch.int64)
    dx = torch.empty(anchors.embeddings.shape, dtype=call.dtype) if need_dx else None
    dr = None
    if need_dr and candidates is not None:
        dr = torch.empty(candidates.embeddings.shape, dtype=call.dtype)
    call.native.write_loss(row_loss.data_ptr(), kept.data_ptr())
    call.native.write_gradients(
        0 if dx is None else dx.data_ptr(), 0 if dr is None else dr.data_ptr()
    )
    call.run()
    return row_loss, kept, dx, dr


def loss_of_statistics(stats: RowStatistics, spec: MultiSimilaritySpec) -> Tensor:
    """Row losses (N,) to the bits of `loss_and_gradient`; torch's depend on its threads."""
    module = _module()
    pos_lse, neg_lse = stats.pos_lse.contiguous(), stats.neg_lse.contiguous()
    out = torch.empty_like(pos_lse)
    module.row_loss(
        _native_dtype(module, out),
        _native_options(spec),
        *(t.data_ptr() for t in (pos_lse, neg_lse, out)),
        len(out),
    )
    return out


@functools.cache
def _module() -> Any:
    # After torch, whose OpenMP runtime then serves this module too.
    return importlib.import_module("ms_kernels._cpu")


def _native_dtype(module: Any, x: Tensor) -> Any:
    return getattr(module.DType, str(x.dtype).removeprefix("torch."))


def _native_options(spec: MultiSimilaritySpec) -> tuple[float, ...]:
    return (
        spec.alpha,
        spec.beta,
        spec.base,
        math.inf if spec.epsilon is None else spec.epsilon,
        math.inf if spec.max_positive_similarity is None else spec.max_positive_similarity,
        spec.normalize,
    )


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


class _Call:
    """A native call and the tensors whose memory it reads."""

    def __init__(
        self, job: str, rows: Side, columns: Side | None, spec: MultiSimilaritySpec
    ) -> None:
        module = _module()
        x = rows.embeddings
        _check_side("rows", rows)
        if columns is not None:
            _check_side("columns", columns)
            _check_columns(rows, columns)
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.read: list[Tensor] = []
        self.native = module.Call(
            getattr(module.Job, job),
            _native_dtype(module, x),
            x.shape[1],
            self._side(rows),
            None if columns is None else self._side(columns),
            _native_options(spec),
        )

    def run(self) -> None:
        size = self.native.plan(torch.get_num_threads(), options.workspace_bytes)
        workspace = torch.empty(size, dtype=torch.uint8)
        self.native.run(workspace.data_ptr())

    def term(self, term: Term | None, count: int) -> tuple[int, ...] | None:
        if term is None:
            return None
        s = term.stats
        arrays = (s.hardest_positive, s.hardest_negative, s.pos_lse, s.neg_lse, term.dloss)
        for array in arrays:
            _check_array("term", array, count)
        return tuple(self._address(a.to(self.dtype).contiguous()) for a in arrays)

    def _side(self, side: Side) -> tuple[int, ...]:
        x = side.embeddings
        if x.shape[1] > 1 and x.stride(1) != 1:
            x = x.contiguous()
        ids = 0 if side.ids is None else self._address(side.ids.contiguous())
        labels = self._address(side.labels.contiguous())
        return self._address(x), x.stride(0), len(x), labels, ids

    def _address(self, tensor: Tensor) -> int:
        self.read.append(tensor)  # alive until the call is over
        return tensor.data_ptr()
