"""Cross-batch memory whose pairs are not listed."""

from typing import Any

import torch
from pytorch_metric_learning import losses as theirs
from pytorch_metric_learning.utils import loss_and_miner_utils
from torch import Tensor

from ms_kernels.compat.pytorch_metric_learning.mined import MinedPairs, all_pairs
from ms_kernels.compat.pytorch_metric_learning.miners import Lazy
from ms_kernels.compat.pytorch_metric_learning.pairs import Call


class CrossBatchMemory(theirs.CrossBatchMemory):
    """pytorch-metric-learning's: queue, buffers and arguments are its own. All pairs of the batch
    and the memory, or those of a miner of ours, go to the loss by their rule and not as lists,
    unless `indices_tuple` is given. The copy of a row is told by its slot."""

    embedding_memory: Tensor
    label_memory: Tensor

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any = None,
        enqueue_mask: Tensor | None = None,
    ) -> Any:
        """The loss of a batch against the memory, which it enters: see pytorch-metric-learning."""
        # What it mined last, to tell how many they were, are rows of the memory as it is.
        miner = getattr(self.miner, "miner", self.miner)
        if isinstance(miner, Lazy):
            miner.let_go()
        return super().forward(embeddings, labels, indices_tuple, enqueue_mask)

    def add_to_memory(self, embeddings: Tensor, labels: Tensor, batch_size: int) -> None:
        for name in ("embedding_memory", "label_memory"):
            # The tensor that others may hold, and one of our own of the same numbers.
            setattr(self, name, getattr(self, name).detach())
            if is_shared(getattr(self, name)):
                setattr(self, name, getattr(self, name).clone())
        super().add_to_memory(embeddings, labels, batch_size)

    def create_indices_tuple(
        self,
        embeddings: Tensor,
        labels: Tensor,
        E_mem: Tensor,
        L_mem: Tensor,
        input_indices_tuple: Any,
        do_remove_self_comparisons: bool,
    ) -> Any:
        given = embeddings, labels, E_mem, L_mem, input_indices_tuple, do_remove_self_comparisons
        if input_indices_tuple is not None:
            return super().create_indices_tuple(*given)
        if self.miner:
            mined = self.miner(embeddings, labels, E_mem, L_mem)
        else:
            mined = all_pairs(Call(embeddings, labels, None, E_mem, L_mem))
        if not do_remove_self_comparisons:
            return mined
        if not isinstance(mined, MinedPairs):
            remove = loss_and_miner_utils.remove_self_comparisons
            return remove(mined, self.curr_batch_idx, self.memory_size)
        slots = torch.arange(len(E_mem), device=E_mem.device)
        return mined.at(embeddings, E_mem, self.curr_batch_idx, slots)


def is_shared(tensor: Tensor) -> bool:
    """Whether another tensor has its numbers: one that somebody kept, or that a loss whose backward
    pass is still to come holds as it was."""
    count = getattr(torch._C, "_storage_Use_Count", None)
    if count is None or torch.compiler.is_compiling():
        return True
    storage = tensor.untyped_storage()
    # Of a storage the tensor is one owner, the object that asks the other.
    return int(count(storage._cdata)) > 2
