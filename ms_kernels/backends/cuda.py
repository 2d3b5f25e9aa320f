"""CUDA C++ backend: statistics, loss and gradient of a batch in one cooperative launch, of a small
one with all its pairs at hand, of a large one by tiles in label order."""

import dataclasses
import functools
import importlib
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends import gpu
from ms_kernels.backends.cuda_learned import LearnedOptions
from ms_kernels.backends.fit import REBUILD, unfit
from ms_kernels.backends.interface import Crowd, Found, Reduced, ReducedPlan, Side, Term
from ms_kernels.backends.listing import ordinals_in_classes
from ms_kernels.backends.native import NativeBackend
from ms_kernels.backends.native_call import (
    LATER,
    NativeCall,
    Output,
    check_array,
    native_dtype,
    native_spec,
)
from ms_kernels.backends.plan import Plan
from ms_kernels.backends.products import as_products, spec_of_products
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import WeightSums
from ms_kernels.rules.weighting import Triplet
from ms_kernels.settings import ONE_LAUNCH, float32_products, options

DEVICE = "cuda"
NOTE = "CUDA C++ kernels, one launch for small batches"
MOST_SAMPLES = ONE_LAUNCH
# By reckoning, not measured on a GPU: kernels take longer the more candidates a class could have.
CROWD = Crowd(4096, of_class=False)

# With so many samples on the larger side, or fewer, a row of similarities fits the registers of a
# warp (csrc/cuda/core/geometry.h): loss and gradient have kernels of their own. Half as many in
# float64.
SMALL = 1024


def fastest_at_any_size(spec: PairSpec | None, dtype: torch.dtype | None) -> bool:
    """Measured on an H200, kernels alone: the MS loss of float32 4,096 x 512 in 1.15 ms against 2.2
    of Triton's, 16,384 x 512 in 15.5 against 31.5; called, 16,384 x 128 in 6.8 against 10.1, but
    4,096 x 128 in 1.2 against 0.8, for the host's time."""
    known = spec is not None and spec.is_multi_similarity
    return known and dtype == torch.float32 and float32_products() == "highest"


def leaves_to_others(spec: PairSpec | None) -> bool:
    """By counting: some fifty launches of torch make longer rows, those of Triton one a side."""
    return spec is not None and spec.distance is not None


def missing() -> str | None:
    """None when the compiled module and a GPU that it serves are here; else why not."""
    if torch.version.hip is not None:
        return (
            f"this torch, {torch.__version__}, is built for ROCm, the kernels are for NVIDIA GPUs; "
            "use backend='panels'"
        )
    reason = gpu.unusable()
    if reason is not None:
        return reason
    try:
        module = _module()
    except ImportError as error:
        return (
            f"the compiled module ms_kernels._cuda is not here ({error}); reinstall with nvcc on "
            f"PATH: {REBUILD}"
        )
    if not hasattr(module, "versions"):
        return (
            "the compiled module ms_kernels._cuda is of an earlier ms_kernels; build it anew: "
            f"{REBUILD}"
        )
    return unfit(torch.cuda.get_device_capability(), module.architectures, *module.versions())


def refuses(spec: PairSpec, dtype: torch.dtype | None) -> str | None:
    """None when the kernels take these rules, else why not."""
    return spec.unfit_options()


@functools.cache
def _module() -> Any:
    return importlib.import_module("ms_kernels._cuda")


@functools.cache
def _refuse(device: torch.device) -> None:
    """Of several GPUs the current one, which `missing` asked about, may be newer."""
    module = _module()
    capability = torch.cuda.get_device_capability(device)
    reason = unfit(capability, module.architectures, *module.versions())
    if reason is not None:
        raise ValueError(f"embeddings: on {device}, {reason}")


def _largest(rows: Side, columns: Side | None) -> int:
    return max(len(side.labels) for side in (rows, columns) if side is not None)


def _is_small(rows: Side, columns: Side | None, spec: PairSpec) -> bool:
    most = SMALL // 2 if rows.embeddings.dtype == torch.float64 else SMALL
    largest = _largest(rows, columns)
    return largest <= min(most, ONE_LAUNCH) and not isinstance(spec.weighting, Triplet)


class _Call(NativeCall):
    def __init__(
        self,
        job: str,
        rows: Side,
        columns: Side | None,
        spec: PairSpec,
        option_values: Tensor | None = None,  # (k,): those of the weighting rule, which learns
    ) -> None:
        super().__init__(rows, columns, DEVICE)
        learns = option_values is not None
        module = _module()
        if self.device.type == "cuda":
            _refuse(self.device)
        # The same when rows and columns change places: only within one path has a pair the same
        # bits in statistics and gradients.
        largest = _largest(rows, columns)
        self.small = job == "loss_and_gradient" and not learns and _is_small(rows, columns, spec)
        # Tiles know the MS loss alone; any rules go through the one launch, panel by panel.
        tiled = spec.is_multi_similarity and spec.distance is None
        self.by_tiles = largest > ONE_LAUNCH and tiled
        self.native = module.Call(
            getattr(module.Job, job),
            native_dtype(module, rows.embeddings),
            getattr(module.Precision, "highest" if spec.distance else float32_products()),
            rows.embeddings.shape[1],
            self._side(rows),
            None if columns is None else self._side(columns),
            native_spec(spec_of_products(spec), self.dtype),
            options.skip_below_of(self.dtype == torch.float64),
            self.by_tiles,
            self.small,
        )
        if option_values is not None:
            count = len(dataclasses.fields(spec.weighting))
            check_array("option_values", option_values, count, self.device)
            self.native.read_options(self.address(option_values.to(self.dtype)), count)
        if isinstance(spec.weighting, Triplet):
            ordinals, most = ordinals_in_classes(rows.labels if columns is None else columns.labels)
            self.native.read_ordinals(self.address(ordinals), self.address(most))

    def run(self) -> None:
        size = self.native.plan(options.workspace_bytes)
        workspace = torch.empty(size, dtype=torch.uint8, device=self.device)
        # Memory freed after the launch is reused in stream order only: the workspace may go.
        _on_stream(self.device, self.native.run, workspace.data_ptr())

    def plan(self, reduction: str, dtype: torch.dtype, need_dx: bool, need_dr: bool) -> Plan:
        """Of a small batch. How many anchors keep a pair is known when the gradients are written:
        those of "mean_valid" are still to be multiplied by the second output."""
        scalar = torch.Size()
        factor = Output(scalar, self.dtype) if reduction == "mean_valid" else None
        self.native.write_reduced(
            LATER,
            dtype == self.dtype,
            0 if factor is None else LATER,
            getattr(_module().Reduction, reduction),
        )
        gradients = self.expect_gradients(need_dx, need_dr)
        size = self.native.plan(options.workspace_bytes)
        # It is kept, and must not keep this call, whose tensors would never be freed.
        run = functools.partial(_on_stream, self.device, self.native.run_again)
        return Plan(self, size, (Output(scalar, dtype), factor, *gradients), run)

    def expect_weight_sums(self) -> Tensor:
        sums = self.empty(len(WeightSums._fields))
        self.native.write_weight_sums(sums.data_ptr())
        return sums

    def _side(self, side: Side) -> tuple[int, ...]:
        labels, ids, order = side.labels, side.ids, None
        if self.by_tiles:
            labels, order = labels.sort(stable=True)
            ids = None if ids is None else ids[order]
        return *self.embeddings(side), *(self.address(a) for a in (labels, ids, order))


def _on_stream(device: torch.device, run: Callable[..., None], *given: object) -> None:
    if device.type == "cuda":
        with torch.cuda.device(device):  # as the module's own runtime will be
            run(*given, device.index, torch.cuda.current_stream().cuda_stream)
    else:
        run(*given, 0, 0)


_backend = NativeBackend(_Call)
_learned = LearnedOptions(_Call)
learned_statistics = _learned.statistics
learned_gradient = _learned.gradient


def learns(spec: PairSpec) -> bool:
    """Whether options may: of every rule, whose greatest exponents the kernels find first."""
    return True


def row_statistics(anchors: Side, candidates: Side | None, spec: PairSpec) -> RowStatistics:
    """Statistics of each anchor; candidates None means the anchors themselves."""
    sides = as_products(anchors, candidates, spec)
    return _backend.row_statistics(sides.rows, sides.columns, spec)


def embedding_gradient(
    rows: Side,
    columns: Side | None,
    spec: PairSpec,
    row_term: Term | None,
    column_term: Term | None,
) -> Tensor:
    """Gradient (N, D) with respect to the rows' embeddings, through their normalisation."""
    sides = as_products(rows, columns, spec, exchanged=row_term is None)
    found = _backend.embedding_gradient(sides.rows, sides.columns, spec, row_term, column_term)
    gradient = sides.of_rows(found)
    assert gradient is not None
    return gradient


def loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    need_dx: bool,
    need_dr: bool,
    dloss: Tensor | None = None,
) -> Found:
    """Row losses, above 0 for the rows that keep a pair, and the gradients of the losses' sum."""
    sides = as_products(anchors, candidates, spec)
    need_dr = need_dx if sides.is_apart else need_dr
    how = spec, need_dx, need_dr, dloss
    losses, kept, dx, dr = _backend.loss_and_gradient(sides.rows, sides.columns, *how)
    return losses, kept, *sides.gradients(dx, dr)


def reduced_loss_and_gradient(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None] | None:
    """The loss and its gradients from one launch; None of a batch that is not small."""
    given = anchors, candidates, spec, reduction, dtype, need_dx, need_dr
    plan = plan_reduced(*given)
    return None if plan is None else plan(anchors, candidates)


def plan_reduced(
    anchors: Side,
    candidates: Side | None,
    spec: PairSpec,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
) -> ReducedPlan | None:
    """What reduced_loss_and_gradient does, for all tensors of these kinds."""
    if not _is_small(anchors, candidates, spec):
        return None
    sides = as_products(anchors, candidates, spec)
    call = _Call("loss_and_gradient", sides.rows, sides.columns, spec)
    # Kernels write a loss in the dtype of their rows, or in that which they compute in.
    written = dtype if spec.distance is None else call.dtype
    plan = call.plan(reduction, written, need_dx, need_dx if sides.is_apart else need_dr)

    def run(anchors: Side, candidates: Side | None) -> Reduced:
        loss, factor, dx, dr = plan(anchors, candidates)
        assert loss is not None
        for gradient in (dx, dr):
            if gradient is not None and factor is not None:
                gradient.mul_(factor)
        return loss, dx, dr

    def run_longer(anchors: Side, candidates: Side | None) -> Reduced:
        sides = as_products(anchors, candidates, spec)
        loss, dx, dr = run(sides.rows, sides.columns)
        return loss.to(dtype), *sides.gradients(dx, dr)

    return run if spec.distance is None else run_longer


def plans_depend_on() -> Hashable:
    """Beside the arguments of plan_reduced."""
    return ONE_LAUNCH, SMALL, options.workspace_bytes, float32_products()
