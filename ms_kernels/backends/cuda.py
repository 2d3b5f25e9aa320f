"""CUDA C++ backend: statistics, loss and gradient of a batch in one cooperative launch, of a large
one by tiles in label order."""

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

# With so many samples on either side, or fewer, one launch. From the floors of a launch against
# tensor-core time, not yet from a measurement on a GPU. The same for rows and columns exchanged:
# only within one path has a pair the same bits in statistics and gradients.
ONE_LAUNCH = 1024


def missing() -> str | None:
    """None when the compiled module and a GPU that it serves are here; else why not."""
    try:
        module = _module()
    except ImportError as error:
        return (
            f"the compiled module ms_kernels._cuda is not here ({error}); reinstall with nvcc on "
            "PATH: MSK_CUDA=ON pip install --no-deps . in the source folder"
        )
    if not torch.cuda.is_available():
        return "this PyTorch sees no CUDA device"
    return _unsupported(torch.cuda.get_device_capability(), module.architectures)


def row_statistics(
    anchors: Side, candidates: Side | None, spec: MultiSimilaritySpec
) -> RowStatistics:
    """Statistics of each anchor; candidates None means the anchors themselves."""
    call = _Call("statistics", anchors, candidates, spec)
    n = len(anchors.labels)
    stats = [call.empty(n) for _ in range(4)] + [call.empty(n, torch.int64) for _ in range(2)]
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
    dx = call.empty(rows.embeddings.shape)
    call.native.read_terms(call.term(row_term), call.term(column_term))
    call.native.write_gradients(dx.data_ptr(), 0)
    call.run()
    return dx


def loss_and_gradient(
    anchors: Side, candidates: Side | None, spec: MultiSimilaritySpec, need_dx: bool, need_dr: bool
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Row losses (N,), kept pairs of each row (N,), gradients of the losses' sum."""
    call = _Call("loss_and_gradient", anchors, candidates, spec)
    row_loss = call.empty(len(anchors.labels))
    kept = call.empty(len(anchors.labels), torch.int64)
    dx = call.empty(anchors.embeddings.shape) if need_dx else None
    dr = None
    if need_dr and candidates is not None:
        dr = call.empty(candidates.embeddings.shape)
    call.native.write_loss(row_loss.data_ptr(), kept.data_ptr())
    call.native.write_gradients(
        0 if dx is None else dx.data_ptr(), 0 if dr is None else dr.data_ptr()
    )
    call.run()
    return row_loss, kept, dx, dr


@functools.cache
def _module() -> Any:
    return importlib.import_module("ms_kernels._cuda")


def _unsupported(capability: tuple[int, int], architectures: str) -> str | None:
    """None when a module built for those CMake architectures runs on a GPU of that capability."""
    found = capability[0] * 10 + capability[1]
    for entry in architectures.split(","):
        number, _, kind = entry.partition("-")
        if not number[0].isdigit():
            return None  # "all", "native": CMake chose
        built = int(number.rstrip("af"))
        # A cubin runs on later minors of its major; PTX is compiled for anything later.
        if found >= built and (kind != "real" or found // 10 == built // 10):
            return None
    return (
        f"this GPU has compute capability {capability[0]}.{capability[1]}, the module is built for "
        f"{architectures}; use backend='triton' or 'panels', or build with "
        f"CMAKE_CUDA_ARCHITECTURES={found}"
    )


class _Call:
    """A native call and the tensors whose memory it reads."""

    def __init__(
        self, job: str, rows: Side, columns: Side | None, spec: MultiSimilaritySpec
    ) -> None:
        module = _module()
        x = rows.embeddings
        smallest = min(len(side.labels) for side in (rows, columns) if side is not None)
        self.by_tiles = smallest > ONE_LAUNCH
        self.device = x.device
        self.dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        self.read: list[Tensor] = []
        self.native = module.Call(
            getattr(module.Job, job),
            getattr(module.DType, str(x.dtype).removeprefix("torch.")),
            getattr(module.Precision, torch.get_float32_matmul_precision()),
            x.shape[1],
            self._side(rows),
            None if columns is None else self._side(columns),
            (
                spec.alpha,
                spec.beta,
                spec.base,
                spec.narrow_epsilon(torch.finfo(self.dtype).max),
                math.inf if spec.max_positive_similarity is None else spec.max_positive_similarity,
                spec.normalize,
                options.skip_below,
            ),
            self.by_tiles,
        )

    def empty(self, shape: int | torch.Size, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(shape, dtype=self.dtype if dtype is None else dtype, device=self.device)

    def run(self) -> None:
        size = self.native.plan(options.workspace_bytes)
        workspace = torch.empty(size, dtype=torch.uint8, device=self.device)
        index, stream = 0, 0
        if self.device.type == "cuda":
            index = self.device.index
            stream = torch.cuda.current_stream(self.device).cuda_stream
        # Memory freed after the launch is reused in stream order only: the workspace may go.
        self.native.run(workspace.data_ptr(), index, stream)

    def term(self, term: Term | None) -> tuple[int, ...] | None:
        if term is None:
            return None
        s = term.stats
        arrays = (s.hardest_positive, s.hardest_negative, s.pos_lse, s.neg_lse, term.dloss)
        return tuple(self._address(a.to(self.dtype).contiguous()) for a in arrays)

    def _side(self, side: Side) -> tuple[int, ...]:
        x = side.embeddings
        if x.shape[1] > 1 and x.stride(1) != 1:
            x = x.contiguous()
        labels, ids, order = side.labels, side.ids, None
        if self.by_tiles:
            labels, order = labels.sort(stable=True)
            ids = None if ids is None else ids[order]
        addresses = [self._address(tensor) for tensor in (x, labels, ids, order)]
        return addresses[0], x.stride(0), len(x), *addresses[1:]

    def _address(self, tensor: Tensor | None) -> int:
        if tensor is None:
            return 0
        if tensor.dtype == torch.int64:
            tensor = tensor.contiguous()
        self.read.append(tensor)  # alive until the call is over
        return tensor.data_ptr()
