"""A call of the compiled module of the CPU."""

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import Counted, Side
from ms_kernels.backends.native_call import LATER, NativeCall, Output, native_dtype, native_spec
from ms_kernels.backends.plan import Plan
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import WeightSums
from ms_kernels.rules.weighting import Triplet
from ms_kernels.settings import options


@functools.cache
def module() -> Any:
    # After torch, whose OpenMP runtime then serves this module too.
    return importlib.import_module("ms_kernels._cpu")


class Call(NativeCall):
    def __init__(self, job: str, rows: Side, columns: Side | None, spec: PairSpec) -> None:
        super().__init__(rows, columns, "cpu", one_dtype=False)
        self.losses, self.triplets = rows.labels.shape, isinstance(spec.weighting, Triplet)
        native = module()
        self.native = native.Call(
            getattr(native.Job, job),
            native_dtype(native, rows.embeddings),
            rows.embeddings.shape[1],
            self._side(rows),
            None if columns is None else self._side(columns),
            native_spec(spec, self.dtype),
        )
        if columns is not None and columns.embeddings.dtype != rows.embeddings.dtype:
            self.native.read_columns_as(native_dtype(native, columns.embeddings))

    def run(self) -> None:
        size = self.native.plan(torch.get_num_threads(), options.workspace_bytes)
        workspace = torch.empty(size, dtype=torch.uint8)
        self.native.run(workspace.data_ptr())

    def plan(self, scale: float, need_dx: bool, need_dr: bool) -> Plan:
        """Of the sum of losses times `scale`."""
        total, rows = Output(torch.Size(), self.dtype), Output(self.losses, self.dtype)
        self.native.write_loss(LATER, 0)
        self.native.write_total(LATER, scale)
        gradients = self.expect_gradients(need_dx, need_dr)
        size = self.native.plan(torch.get_num_threads(), options.workspace_bytes)
        return Plan(self, size, (total, rows, *gradients), self.native.run_again)

    def counted(self, need_dx: bool, need_dr: bool, dloss: Tensor | None, weigh: bool) -> Counted:
        """weigh: whether sums of weights are wanted; of triplets, which need none, zeros."""
        sums = self.expect_weight_sums() if weigh else None
        found = self.counted_loss(need_dx, need_dr, dloss)
        return found if sums is None else found._replace(weight_sums=sums.to(self.dtype))

    def expect_weight_sums(self) -> Tensor:
        sums = torch.zeros(len(WeightSums._fields), dtype=torch.float64)
        if not self.triplets:
            self.native.add_weight_sums(sums.data_ptr())
        return sums

    def anchor_both(self) -> None:
        assert self.columns is not None
        self.native.anchor_both()
        self.losses = torch.Size((len(self.rows.labels) + len(self.columns.labels),))

    def _side(self, side: Side) -> tuple[int, ...]:
        return *self.embeddings(side), self.address(side.labels), self.address(side.ids)
