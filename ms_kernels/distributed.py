"""Losses of the rows of all processes of torch.distributed."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ms_kernels.api.agreement import Schedule, agreed, refuse_counting
from ms_kernels.api.everybody import (
    GlobalLosses,
    check_remembered,
    everybody_of,
    gathered,
    ring_loss,
)
from ms_kernels.api.gathered import gather_rows
from ms_kernels.api.graph import fits_a_graph, loss_in_graph
from ms_kernels.api.hints import names_the_way
from ms_kernels.api.joined import check_joined
from ms_kernels.api.memory import CrossBatchMemory
from ms_kernels.api.modules import PairLoss
from ms_kernels.checks import Pairs, check_choice

__all__ = ["DistributedLoss", "gather_rows"]

SCHEDULES = ("gather", "ring")


class DistributedLoss(nn.Module):
    """The loss of the global batch, exactly: of the rows of all processes, as if one had them.

    Each process gives its rows, as many as it has, none too; each gets the loss of the whole, the
    same to the bit, and its backward pass the gradient of its own rows. The backward pass of
    "mean", "sum" and "mean_valid" sends nothing. Work of a process: its rows against all. Without a
    process group it is the loss itself.

    Args:
        loss: a `PairLoss`, or a `CrossBatchMemory`, whose queue is then the same on every process.
            With reduction "none" a process gets the losses of its own rows.
        group: of torch.distributed. Default: all processes.
        schedule: "gather": each process holds the embeddings of all, (N, D), and seven numbers of
            each. "ring": blocks of rows go round, and a process holds its own and two visitors, the
            one at hand and the next, which is under way meanwhile: O(n D), however many processes.

    A ring goes round once for the sums and once for the gradient, of NoMining and ThresholdMining;
    for other mining rules, which ask for hardest pairs, once more before; for `NTXent`
    and `NPair`, whose positives need the sum of all negatives, once more between. It gives what
    blocks add up to: a `CrossBatchMemory`, triplets, rules of your own, `HistogramLoss` and the
    backend "reference" are refused. On a GPU Triton's kernels take all blocks but those of `NTXent`
    and `NPair`, CUDA's besides none of rules that ask for hardest pairs; those of `TopKMining` are
    for plain PyTorch anywhere. "auto" finds who takes them; a backend that was asked for refuses
    what it does not take. Each anchor's blocks are added up in one order, so a run gives the same
    bits as the last; with another number of processes blocks are others, and the last bits may be.
    Options that learn are read, for which a GPU is waited for.

    Under DistributedDataParallel, which divides gradients by the number of processes, multiply the
    loss by it for the gradients of one process:

    >>> criterion = DistributedLoss(MultiSimilarityLoss())
    >>> loss = criterion(model(images), labels)
    >>> (loss * torch.distributed.get_world_size()).backward()

    torch.compile holds the loss in a graph as one op, with fullgraph=True too: of rules of this
    package whose options are numbers, reduced. A graph ends before a `CrossBatchMemory`, rules of
    your own, options that learn, `HistogramLoss`, backend "reference" and reduction "none", which
    run as they do without it; there fullgraph=True is an error of the compiler. Sizes of other
    processes are waited for, which no CUDA graph can (mode="reduce-overhead").

    A process whose arguments do not fit makes all of them raise, with its message and rank; so do
    dimensions, dtypes and options that differ. Of an option that learns each process has its share
    of the derivative. Rules of your own, `HistogramLoss`, and options that learn where no kernels
    take them are computed for the whole batch on every process.
    """

    @names_the_way
    def __init__(
        self, loss: PairLoss | CrossBatchMemory, group: Any = None, schedule: str = "gather"
    ) -> None:
        super().__init__()
        if not isinstance(loss, (PairLoss, CrossBatchMemory)):
            raise TypeError(
                "loss: expected a PairLoss or a CrossBatchMemory, such as MultiSimilarityLoss(), "
                f"got {loss!r}"
            )
        check_choice("schedule", schedule, SCHEDULES)
        if schedule == "ring":
            check_joined(loss)
        if isinstance(loss, CrossBatchMemory):
            check_remembered(loss.loss)
        self.loss, self.group, self.schedule = loss, group, schedule
        self._several = False  # it has computed over several processes
        self.group_name: str = getattr(group, "group_name", "")  # what a graph can hold of it

    @names_the_way
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        ids: Tensor | None = None,
        anchor_mask: Tensor | None = None,
        sample_weight: Tensor | None = None,
    ) -> Tensor:
        """The loss of (n, D) embeddings and (n,) labels of each process: see `pair_loss`."""
        options = {"ids": ids, "anchor_mask": anchor_mask, "sample_weight": sample_weight}
        if self._has_no_group() or self._alone():
            if isinstance(self.loss, CrossBatchMemory):
                refuse_counting(options)
                return self.loss(embeddings, labels, ids)  # type: ignore[no-any-return]
            return self.loss(embeddings, labels, **options)  # type: ignore[no-any-return]
        if not torch.compiler.is_compiling():
            return self._eager(embeddings, labels, **options)
        if fits_a_graph(self.loss, embeddings, sample_weight):
            how = Schedule(self.loss, self.group_name, self.schedule)
            return loss_in_graph(how, embeddings, labels, options)
        return _outside_of_graphs(self, embeddings, labels, options)

    def _eager(self, embeddings: Tensor, labels: Tensor, **options: Tensor | None) -> Tensor:
        self._several = True
        wanted = isinstance(embeddings, Tensor) and embeddings.requires_grad
        loss = self.loss.loss if isinstance(self.loss, CrossBatchMemory) else self.loss
        learned = any(option.requires_grad for option in loss.rule.learned.values())
        wanted = (wanted or learned) and torch.is_grad_enabled()
        how = Schedule(self.loss, self.group, self.schedule)
        here = agreed(how, embeddings, labels, options, wanted)
        if isinstance(self.loss, PairLoss):
            if self.schedule == "ring":
                return ring_loss(self.loss, here)
            return gathered(self.loss, here).of_batch()
        rows, labels, all_ids = everybody_of(here, options["ids"] is not None)
        entering = self.loss.call_of(rows, labels, all_ids, None)
        everybody = Pairs(rows, labels, entering.ids, None, None, None)
        given = here.pairs, everybody, here.weight, here.exchange
        return self.loss.step(entering, GlobalLosses(self.loss.loss, *given))

    def _has_no_group(self) -> bool:
        if dist.is_available() and dist.is_initialized():
            return False
        if self.group is not None or self._several:
            raise RuntimeError(
                "group: expected the process group that this loss was given, or has computed in, "
                "got none: it was destroyed; make another loss for one process, or after "
                "init_process_group()"
            )
        return True

    def _alone(self) -> bool:
        size = dist.get_world_size(self.group)
        if size < 1:
            raise ValueError(
                f"group: expected a group of this process, got {self.group!r}, which rank "
                f"{dist.get_rank()} is not in; call the loss in the processes of its group alone"
            )
        return size == 1

    def extra_repr(self) -> str:
        return f"schedule={self.schedule!r}"


def _outside(
    module: DistributedLoss, embeddings: Tensor, labels: Tensor, options: dict[str, Tensor | None]
) -> Tensor:
    return module._eager(embeddings, labels, **options)


# torch.compiler.disable would import the compiler with this module, which takes seconds.
_outside_of_graphs = torch._disable_dynamo(_outside)  # type: ignore[attr-defined]
