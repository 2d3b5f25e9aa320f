"""Losses and miners of the rows of all processes, under the name that version 3 gives the module:
pytorch-metric-learning 2 has it as utils.distributed.
"""

from typing import Any

import torch
from pytorch_metric_learning.utils import distributed as theirs
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor

from ms_kernels.compat.pytorch_metric_learning.mined import MinedPairs, all_pairs
from ms_kernels.compat.pytorch_metric_learning.miners import Lazy
from ms_kernels.compat.pytorch_metric_learning.pairs import Call
from ms_kernels.compat.pytorch_metric_learning.served import Served
from ms_kernels.compat.pytorch_metric_learning.unlisted import Unlisted


def __getattr__(name: str) -> Any:
    """What is not replaced, such as all_gather."""
    return getattr(theirs, name)


class DistributedLossWrapper(theirs.DistributedLossWrapper):
    """pytorch-metric-learning's: what is gathered, and the factor of the number of processes, are
    as there. Pairs of rows here and rows of all, or references of all with their labels, are not
    listed, nor those of a wrapped miner of ours."""

    loss: Any

    def forward_regular_loss(
        self,
        emb: Tensor,
        labels: Tensor | None,
        indices_tuple: Any,
        ref_emb: Tensor | None,
        ref_labels: Tensor | None,
        world_size: int,
    ) -> Any:
        mined = isinstance(indices_tuple, Unlisted)
        mined = mined and indices_tuple.is_gathered_from(emb, ref_emb)
        labelled = labels is not None and (ref_emb is None) == (ref_labels is None)
        own = self.efficient and indices_tuple is None and labelled
        served = isinstance(self.loss, Served) and (mined or own)
        if world_size <= 1 or not served:
            given = emb, labels, indices_tuple, ref_emb, ref_labels, world_size
            return super().forward_regular_loss(*given)
        rows, row_labels, refs, others, labels = theirs.gather_emb_and_ref(
            emb, labels, ref_emb, ref_labels
        )
        if self.efficient:
            refs, others = (rows, row_labels) if refs is None else (refs, others)
            rows, row_labels = emb, labels
        if mined:
            pairs = indices_tuple.at(rows, refs)
        else:
            pairs = without_own(all_pairs(Call(rows, row_labels, None, refs, others)), rows, refs)
        return self.loss(rows, row_labels, pairs, refs, others) * world_size


class DistributedMinerWrapper(theirs.DistributedMinerWrapper):
    """pytorch-metric-learning's; pairs of a miner of ours are not listed, but with references where
    efficient=True: of these pairs i = i are left out, which do bound what is mined."""

    miner: Any

    def forward(
        self,
        emb: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Any:
        world_size = torch.distributed.get_world_size()
        lazy = isinstance(self.miner, Lazy)
        if world_size <= 1 or not lazy:
            return super().forward(emb, labels, ref_emb, ref_labels)
        gathered = theirs.gather_emb_and_ref(emb, labels, ref_emb, ref_labels)
        rows, row_labels, refs, others, labels = gathered
        if not self.efficient:
            mined = self.miner(rows, row_labels, refs, others)
        else:
            refs = rows if refs is None else refs
            others = row_labels if others is None else others
            mined = self.miner(emb, labels, refs, others)
            if ref_emb is None and isinstance(mined, MinedPairs):
                mined = without_own(mined, emb, refs)
            else:
                own = torch.arange(len(labels), device=labels.device)
                mined = loss_and_miner_utils.remove_self_comparisons(mined, own, len(others))
        return mined.gathered_from(emb, ref_emb) if isinstance(mined, Unlisted) else mined


REPLACED = DistributedLossWrapper, DistributedMinerWrapper


def without_own(mined: MinedPairs, rows: Tensor, everybody: Tensor) -> MinedPairs:
    """Without the positive pairs i = i: own rows, or own references, are the first of everybody's.
    A pair i = i of references may be a negative, which stays: then no two ids are equal."""
    ids, all_ids = (torch.arange(len(side), device=rows.device) for side in (rows, everybody))
    labels, others = mined.pairs.labels, mined.pairs.ref_labels
    assert others is not None
    few = min(len(ids), len(all_ids))
    other = labels[:few] != others[:few]
    all_ids[:few] += other * (len(ids) + len(all_ids))
    return mined.at(rows, everybody, ids, all_ids)
