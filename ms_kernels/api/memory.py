"""Cross-batch memory: candidates from past batches."""

import warnings
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ms_kernels.api.counting import check_one_label, check_rows, without_label
from ms_kernels.api.hints import names_the_way
from ms_kernels.api.modules import PairLoss
from ms_kernels.api.ring import Ring, Slots, held, no_wider
from ms_kernels.checks import DTYPES, Pairs, check_number, check_pairs, check_whole
from ms_kernels.engine.refusals import constants
from ms_kernels.reference import IGNORED

MOST = 2**31 - 1


class CrossBatchMemory(nn.Module):
    """A loss against the rows of past batches too (cross-batch memory, XBM).

        batch_weight * loss(batch, batch) + memory_weight * loss(batch, memory)

    The memory is the newest `size` rows as they were, detached, those of this batch among them; the
    copy of a row is told by its id and is never its pair. In training mode a call adds its batch,
    unless the loss raises. A row that is not finite does not enter: the loss of its call is NaN,
    those of later calls are not.

    Args:
        loss: a `PairLoss`, with its rules and options; its `statistics` are those of the memory.
        embedding_dim: D.
        size: rows that the memory holds.
        dtype: in which it holds them, float32, bfloat16, float16 or float64. Rows are normalised
            before, if the loss normalises. Default float32.
        batch_weight, memory_weight: of the two losses. 0 leaves one out. Default 1.
        warmup: in so many first calls there is the loss of the batch alone, and no row enters.
            Default 0.

    Memory is O(size * D), and no call waits for a GPU but len(). `state_dict` holds everything: a
    run that goes on from it is the run that never stopped, to the bit.

    Source: Wang et al., Cross-Batch Memory for Embedding Learning, CVPR 2020.

    >>> memory = CrossBatchMemory(MultiSimilarityLoss(), embedding_dim=128, size=65536)
    >>> memory(embeddings, labels, ids=image_numbers).backward()
    """

    @names_the_way
    def __init__(
        self,
        loss: PairLoss,
        embedding_dim: int,
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        batch_weight: float = 1.0,
        memory_weight: float = 1.0,
        warmup: int = 0,
    ) -> None:
        super().__init__()
        if not isinstance(loss, PairLoss):
            raise TypeError(
                f"loss: expected a PairLoss, such as MultiSimilarityLoss(), got {loss!r}; a rule "
                "becomes one by PairLoss(rule)"
            )
        learned = loss.rule.learned.items()
        computed = [name for name, option in learned if option.grad_fn is not None]
        if computed:
            raise ValueError(
                f"loss: expected options that are numbers or parameters, got {', '.join(computed)} "
                "computed from others, whose graph the first backward pass frees; give the loss an "
                "nn.Parameter"
            )
        check_whole("embedding_dim", embedding_dim, MOST)
        check_whole("size", size, MOST, " of rows")
        if dtype not in DTYPES:
            raise TypeError(f"dtype: expected one of {', '.join(map(str, DTYPES))}, got {dtype!r}")
        check_number("batch_weight", batch_weight)
        check_number("memory_weight", memory_weight)
        if batch_weight == memory_weight == 0:
            raise ValueError(
                "batch_weight, memory_weight: expected one that is not 0, got 0 and 0, of which "
                "there is no loss"
            )
        if warmup != 0:
            check_whole("warmup", warmup, MOST, " of calls")
            if batch_weight == 0:
                raise ValueError(
                    f"warmup: expected 0 with batch_weight=0, got {warmup}: calls without the "
                    "memory would have no loss"
                )
        self.loss = loss
        self.embedding_dim, self.size, self.dtype = embedding_dim, size, dtype
        self.batch_weight, self.memory_weight, self.warmup = batch_weight, memory_weight, warmup
        self.ring = Ring(size, embedding_dim, dtype)
        self._left: int | None = warmup  # warm-up calls to come; None: the device knows
        self._told = False

    @names_the_way
    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ids: Tensor | None = None,
        enqueue_mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of (N, D) embeddings and their (N,) labels, which enter the memory.

        ids: (N,) integers that name samples, such as their places in the data set: past copies of a
            sample are then no pairs of it either. Default: numbers below -1, new in each call.
        enqueue_mask: (N,) bool. True rows, as of another encoder (MoCo), enter and are candidates
            alone; the others are anchors, and do not enter. Default: all are both.
        """
        call = self.call_of(embeddings, labels, ids, enqueue_mask)
        return self.step(call, _Losses(self.loss, call, enqueue_mask))

    def enqueue(self, rows: Tensor, labels: Tensor, ids: Tensor | None = None) -> None:
        """Adds rows, as of another encoder (MoCo): candidates of the calls to come."""
        call = self.call_of(rows, labels, ids, None)
        self._enter(call, None)
        self.ring.serial += call.ids.shape[0]

    def reset(self) -> None:
        """Empties the memory; warm-up begins again."""
        self.ring.clear()
        self._left = self.warmup

    def __len__(self) -> int:
        """Rows in the memory; a GPU is waited for."""
        return int(self.ring.filled)

    def extra_repr(self) -> str:
        return (
            f"embedding_dim={self.embedding_dim}, size={self.size}, dtype={self.dtype}, "
            f"batch_weight={self.batch_weight}, memory_weight={self.memory_weight}, "
            f"warmup={self.warmup}"
        )

    def check(self, embeddings: Tensor) -> None:
        """Of (N, D) rows whether they may enter."""
        if embeddings.shape[1] != self.embedding_dim:
            raise ValueError(
                f"embeddings: expected shape (N, {self.embedding_dim}) as embedding_dim has it, "
                f"got {tuple(embeddings.shape)}"
            )
        if embeddings.device != self.ring.rows.device:
            raise ValueError(
                f"embeddings: expected device {self.ring.rows.device} as the memory, got "
                f"{embeddings.device}; use memory.to(embeddings.device)"
            )

    def call_of(
        self, embeddings: Tensor, labels: Tensor, ids: Tensor | None, enqueue_mask: Tensor | None
    ) -> "Call":
        """Checked; samples without ids are given some."""
        pairs = check_pairs(embeddings, labels, None, None, ids, None)
        check_one_label("CrossBatchMemory", pairs.labels)
        self.check(embeddings)
        if enqueue_mask is not None:
            check_rows("enqueue_mask", enqueue_mask, embeddings, flags=True)
        x, labels, own, *_ = pairs
        if own is None:
            own = torch.arange(-2, -2 - labels.shape[0], -1, device=x.device) - self.ring.serial
        ignored, anchors = self.loss.options["ignore_label"], None
        enters = enqueue_mask
        if enters is not None:
            anchors = ~enters
        if ignored is not None:
            known = labels != ignored
            enters = known if enters is None else enters & known
        weight = self.loss.weights_of(pairs, anchors)
        x, _, own, *_ = without_label(Pairs(x, labels, own, None, None, None), ignored)
        assert own is not None
        return Call(x, labels, own, ids is not None or ignored is not None, enters, weight)

    def step(self, call: "Call", losses: "Losses") -> Tensor:
        """The rows of a call enter, and both losses are added up; what raises changes nothing."""
        warm = self._warm()
        before = None
        if self.training and warm is not False:
            before = self._enter(call, warm)
        try:
            parts: list[Tensor] = []  # None is asked that weighs nothing
            if self.batch_weight != 0 or warm is False:
                parts.append(_weighed(self.batch_weight, losses.of_batch()))
            if self.memory_weight != 0 and warm is not False:
                of_memory = losses.of_memory(*self.ring.candidates())
                of_memory = _weighed(self.memory_weight, of_memory)
                if isinstance(warm, Tensor):
                    of_memory = torch.where(warm, of_memory, 0)
                parts.append(of_memory)
            loss = parts[0] if len(parts) == 1 else parts[0] + parts[1]
        except BaseException:
            if before is not None:
                self.ring.restore(before)
            raise
        if self.training:
            self._count(call)
        return loss

    def _warm(self) -> bool | Tensor | None:
        """Whether warm-up is over, None where there is none; in a graph the device tells."""
        if self.warmup == 0:
            return None
        if torch.compiler.is_compiling():
            return self.ring.calls >= self.warmup
        if self._left is None:
            self._left = max(0, self.warmup - int(self.ring.calls))
        return self._left == 0

    def _enter(self, call: "Call", warm: bool | Tensor | None) -> Slots:
        with constants(), torch.autocast(call.embeddings.device.type, enabled=False):
            x, dtype = call.embeddings.detach(), self.ring.rows.dtype
            rows, enters = held(x, dtype, self.loss.options["normalize"])
            if call.enters is not None:
                enters = enters & call.enters
            if isinstance(warm, Tensor):
                enters = enters & warm
            told = self._told or torch.compiler.is_compiling()  # a graph cannot warn
            if rows.shape[0] > self.size and not told:
                self._told = True
                warnings.warn(
                    f"CrossBatchMemory: a batch of {rows.shape[0]} rows is more than size="
                    f"{self.size} holds: the newest are kept",
                    stacklevel=3,
                )
            return self.ring.write(rows, call.labels, call.ids, enters)

    def _count(self, call: "Call") -> None:
        self.ring.serial += call.ids.shape[0]
        if self.warmup:
            self.ring.calls += 1
            compiling = torch.compiler.is_compiling()
            self._left = None if compiling or self._left is None else max(0, self._left - 1)

    def _load_from_state_dict(self, *given: Any, **options: Any) -> None:
        super()._load_from_state_dict(*given, **options)
        self._left = None


class Call(NamedTuple):
    """The rows of a call, and which of them enter: None for all."""

    embeddings: Tensor
    labels: Tensor
    ids: Tensor
    named: bool  # not by their places alone
    enters: Tensor | None
    weight: Tensor | None  # of anchors


class Losses(Protocol):
    """What a memory adds up."""

    def of_batch(self) -> Tensor: ...

    def of_memory(self, rows: Tensor, labels: Tensor, ids: Tensor) -> Tensor: ...


class _Losses:
    """Of one process."""

    def __init__(self, loss: PairLoss, call: Call, enqueue_mask: Tensor | None) -> None:
        self.loss, self.call, self.enqueue_mask = loss, call, enqueue_mask

    def of_batch(self) -> Tensor:
        x, labels, ids, named, _, weight = self.call
        own = ids if named else None
        if self.enqueue_mask is not None:
            own = torch.where(self.enqueue_mask, IGNORED, ids)
        return self.loss.compute((x, labels, None, None, own, None), (None, None, weight))

    def of_memory(self, rows: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        x, own_labels, own, _, _, weight = self.call
        # Looked at once more in the backward pass, when others have entered.
        if self.loss.in_plain_pytorch(Pairs(x, own_labels, own, rows, labels, ids)):
            _refuse_graphs()
            rows, labels, ids = rows.clone(), labels.clone(), ids.clone()
        sides = x, own_labels, no_wider(rows, x), labels, own, ids
        return self.loss.compute(sides, (None, None, weight))


def _weighed(weight: float, loss: Tensor) -> Tensor:
    # On a GPU a product is a launch, and one more of its derivative.
    return loss if weight == 1 else weight * loss


def _refuse_graphs() -> None:
    """Of a loss in plain PyTorch a graph computes the candidates again in its backward pass, from a
    memory that has moved on: gradients would be wrong."""
    if torch.compiler.is_compiling():
        raise RuntimeError(
            "CrossBatchMemory: expected a loss that kernels compute in torch.compile, got one in "
            "plain PyTorch; call the memory outside of the graph"
        )
