"""A call of the compiled module of the CUDA backend, on the stream of its tensors."""

import dataclasses
import functools
import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.fit import unfit
from ms_kernels.backends.interface import Side
from ms_kernels.backends.listing import ordinals_in_classes
from ms_kernels.backends.native_call import (
    LATER,
    NativeCall,
    Output,
    check_array,
    native_dtype,
    native_spec,
)
from ms_kernels.backends.plan import Plan
from ms_kernels.backends.products import spec_of_products
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import WeightSums
from ms_kernels.rules.weighting import Triplet
from ms_kernels.settings import float32_products, options

DEVICE = "cuda"


@functools.cache
def module() -> Any:
    return importlib.import_module("ms_kernels._cuda")


@functools.cache
def refuse_device(device: torch.device) -> None:
    """Of several GPUs the current one, which `missing` asked about, may be newer."""
    native = module()
    capability = torch.cuda.get_device_capability(device)
    reason = unfit(capability, native.architectures, *native.versions())
    if reason is not None:
        raise ValueError(f"embeddings: on {device}, {reason}")


class Call(NativeCall):
    def __init__(
        self,
        job: str,
        rows: Side,
        columns: Side | None,
        spec: PairSpec,
        by_tiles: bool,
        small: bool,
        option_values: Tensor | None = None,  # (k,): those of the weighting rule, which learns
    ) -> None:
        super().__init__(rows, columns, DEVICE)
        native = module()
        if self.device.type == "cuda":
            refuse_device(self.device)
        self.by_tiles = by_tiles
        self.native = native.Call(
            getattr(native.Job, job),
            native_dtype(native, rows.embeddings),
            getattr(native.Precision, "highest" if spec.distance else float32_products()),
            rows.embeddings.shape[1],
            self._side(rows),
            None if columns is None else self._side(columns),
            native_spec(spec_of_products(spec), self.dtype),
            options.skip_below_of(self.dtype == torch.float64),
            by_tiles,
            small,
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
            getattr(module().Reduction, reduction),
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
