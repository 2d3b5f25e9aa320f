"""Losses of the rows of all processes of torch.distributed."""

import dataclasses
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ms_kernels.api.counting import check_one_label, without_label
from ms_kernels.api.memory import CrossBatchMemory
from ms_kernels.api.modules import PairLoss
from ms_kernels.checks import Pairs, check_choice, check_pairs
from ms_kernels.engine.autograd import differentiable_once, in_public_dtype
from ms_kernels.engine.exchange import Exchange
from ms_kernels.engine.global_loss import GlobalCall, GlobalLoss, RowsHere
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec, spec_of
from ms_kernels.rules.weighting import Weighting

__all__ = ["DistributedLoss"]

SCHEDULES = ("gather",)


class DistributedLoss(nn.Module):
    """The loss of the global batch, exactly: of the rows of all processes, as if one had them.

    Each process gives its rows, as many as it has, none too; each gets the loss of the whole, the
    same to the bit, and its backward pass the gradient of its own rows. Embeddings are gathered,
    then seven numbers a row; the backward pass of "mean", "sum" and "mean_valid" sends nothing.
    Work of a process: its rows against all. Without a process group it is the loss itself.

    Args:
        loss: a `PairLoss`, or a `CrossBatchMemory`, whose queue is then the same on every process.
            With reduction "none" a process gets the losses of its own rows.
        group: of torch.distributed. Default: all processes.
        schedule: "gather": each process holds the embeddings of all.

    Under DistributedDataParallel, which divides gradients by the number of processes, multiply the
    loss by it for the gradients of one process:

    >>> criterion = DistributedLoss(MultiSimilarityLoss())
    >>> loss = criterion(model(images), labels)
    >>> (loss * torch.distributed.get_world_size()).backward()

    A process whose arguments do not fit makes all of them raise, with its message and rank; so do
    dimensions, dtypes and options that differ. Rules of your own, options that learn, and
    `HistogramLoss` are computed for the whole batch on every process; of an option that learns each
    has its share of the derivative.
    """

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
        if isinstance(loss, CrossBatchMemory) and not _by_statistics(loss.loss):
            raise ValueError(
                "loss: expected rules of this package, options that are numbers and no backend "
                "'reference' in a CrossBatchMemory of several processes, got "
                f"{loss.loss!r}"
            )
        self.loss, self.group, self.schedule = loss, group, schedule

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
        memory = self.loss if isinstance(self.loss, CrossBatchMemory) else None
        counted = anchor_mask is not None or sample_weight is not None
        if not dist.is_available() or not dist.is_initialized() or self._alone():
            if memory is not None:
                _refuse_counting(counted)
                return memory(embeddings, labels, ids)  # type: ignore[no-any-return]
            options = {"ids": ids, "anchor_mask": anchor_mask, "sample_weight": sample_weight}
            return self.loss(embeddings, labels, **options)  # type: ignore[no-any-return]
        loss = self.loss if memory is None else memory.loss
        assert isinstance(loss, PairLoss)
        ignored = loss.options["ignore_label"]
        exchange = Exchange(self.group, _device(embeddings))
        weight, error, pairs = None, None, None
        try:
            pairs = check_pairs(embeddings, labels, None, None, ids, None)
            check_one_label("DistributedLoss", pairs.labels)
            differentiable_once(pairs, "DistributedLoss")
            weight = loss.weights_of(pairs, anchor_mask, sample_weight)
            if weight is not None and weight.requires_grad:
                raise ValueError(
                    "sample_weight: expected a constant in a loss of several processes, got one "
                    "that requires a gradient; use sample_weight.detach()"
                )
            if memory is not None:
                _refuse_counting(counted)
                memory.check(embeddings)
        except (TypeError, ValueError, RuntimeError) as refused:
            error = f"{type(refused).__name__}: {refused}"
        facts = {} if error else self._facts(embeddings, ids, weight)
        gradient = error is None and embeddings.requires_grad and torch.is_grad_enabled()
        exchange.agree(facts, 0 if error else embeddings.shape[0], gradient, error)
        assert pairs is not None
        if loss.options["reduction"] == "none" and len(exchange.gradients) > 1:
            raise ValueError(
                "embeddings: expected to require a gradient on every rank or on none with "
                "reduction='none', whose backward pass is of all; got some of either"
            )
        if pairs.ids is None and memory is None:
            places = torch.arange(exchange.own.start, exchange.own.stop, device=embeddings.device)
            pairs = Pairs(*pairs[:2], places, None, None, None)
        pairs = without_label(pairs, ignored)
        rows = exchange.gather(pairs.embeddings.detach())
        codes = [pairs.labels]
        if pairs.ids is not None and (memory is None or ids is not None):
            codes.append(pairs.ids)
        row_labels, *row_ids = exchange.gather(torch.stack(codes, 1)).T.contiguous()
        if memory is None:
            everybody = Pairs(rows, row_labels, row_ids[0], None, None, None)
            return _GlobalLosses(loss, pairs, everybody, weight, exchange).of_batch()
        call = memory.call_of(rows, row_labels, row_ids[0] if row_ids else None, None)
        everybody = Pairs(rows, row_labels, call.ids, None, None, None)
        return memory.step(call, _GlobalLosses(loss, pairs, everybody, weight, exchange))

    def _facts(
        self, embeddings: Tensor, ids: Tensor | None, weight: Tensor | None
    ) -> dict[str, str]:
        """What must be the same on every process."""
        given = ("None", "given")
        facts = {
            "embeddings": f"shape (N, {embeddings.shape[1]}) of {embeddings.dtype}",
            "ids": given[ids is not None],
            "weights of anchors": given[weight is not None],
        }
        if isinstance(self.loss, CrossBatchMemory):
            # Of a GPU these are asked when it is waited for anyway.
            facts["loss"] = f"{self.loss.extra_repr()}, {_described(self.loss.loss)}"
            facts["memory"] = f"training={self.loss.training}, {self.loss.ring.progress()}"
        else:
            facts["loss"] = _described(self.loss)
        return facts

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


class _GlobalLosses:
    """Of the rows here against those of everybody, or of a memory."""

    def __init__(
        self,
        loss: PairLoss,
        here: Pairs,
        everybody: Pairs,
        weight: Tensor | None,
        exchange: Exchange,
    ) -> None:
        self.loss, self.here, self.everybody = loss, here, everybody
        self.weight, self.exchange = weight, exchange
        self.spec = spec_of(loss.rule, loss.mining, loss.shared)
        self.place = exchange.own

    def of_batch(self) -> Tensor:
        rows, labels, ids, *_ = self.everybody
        assert ids is not None
        if self.spec is None or not _by_statistics(self.loss):
            return self._of_whole_batch()
        return self._fused(self.spec, True, rows, labels, ids)

    def of_memory(self, rows: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        assert self.spec is not None
        return self._fused(self.spec, False, rows.to(self.here.embeddings.dtype), labels, ids)

    def _fused(
        self, spec: PairSpec, mutual: bool, rows: Tensor, labels: Tensor, ids: Tensor
    ) -> Tensor:
        x, own_labels, *_ = self.here
        assert self.everybody.ids is not None
        own_ids = self.everybody.ids[self.place]
        anchors = Pairs(x, own_labels, own_ids, rows, labels, ids)
        options = self.loss.options
        how = spec, options["reduction"], options["backend"], self.exchange
        call = GlobalCall(anchors, mutual, *how)
        found, *stats = GlobalLoss.apply(x, self.weight, call)  # type: ignore[no-untyped-call]
        if self.loss.keep_statistics:
            self.loss.keep(RowStatistics(*stats))
        return in_public_dtype(found, x, options["reduction"])

    def _of_whole_batch(self) -> Tensor:
        """On every process, of which each has the gradient of its rows."""
        rows, labels, ids, *_ = self.everybody
        first, end = self.place.start, self.place.stop
        mixed = torch.cat([rows[:first], self.here.embeddings, rows[end:]])
        weight = None if self.weight is None else self.exchange.gather(self.weight)
        loss = self.loss.with_weighting(_share_of(self.loss.rule, self.exchange.size))
        found = loss.compute((mixed, labels, None, None, ids, None), (None, None, weight))
        if loss.keep_statistics:
            self.loss.keep(RowStatistics(*(s[self.place] for s in loss.statistics)))
        if found.ndim == 0:
            return found
        return RowsHere.apply(found, self.exchange)  # type: ignore[no-any-return, no-untyped-call]


def _share_of(weighting: Weighting, size: int) -> Weighting:
    """Of options that learn each process has a share of the derivative, as it has of the rows: over
    processes they add up."""
    learned = weighting.learned
    if not learned:
        return weighting
    parts = {name: value / size for name, value in learned.items()}
    shares = {name: part + (learned[name] - part).detach() for name, part in parts.items()}
    return dataclasses.replace(weighting, **shares)


def _refuse_counting(counted: bool) -> None:
    if counted:
        raise ValueError(
            "anchor_mask, sample_weight: expected None with a CrossBatchMemory, got a tensor"
        )


def _device(embeddings: object) -> torch.device:
    return embeddings.device if isinstance(embeddings, Tensor) else torch.device("cpu")


def _by_statistics(loss: PairLoss) -> bool:
    """Whether the loss of an anchor follows from statistics that a backend has."""
    return loss.fused and loss.options["backend"] != "reference"


def _described(loss: PairLoss) -> str:
    """Without the values of what learns, which a GPU would be waited for."""
    learned = loss.weighting.learned
    options = (f.name for f in dataclasses.fields(loss.weighting))
    named = (f"{n}={'learned' if n in learned else getattr(loss.weighting, n)}" for n in options)
    rule = f"{type(loss.weighting).__name__}({', '.join(named)})"
    return f"{rule}, {loss.mining!r}, {loss.options}"
