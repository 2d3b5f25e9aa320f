"""The loss of all processes as one op, so that torch.compile can hold it in a graph.

What is sent depends on numbers of other processes, which no graph knows; what comes out has the
shapes of what is here.
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, library

from ms_kernels.api.agreement import Schedule, agreed
from ms_kernels.api.everybody import by_statistics, gathered, ring_call
from ms_kernels.api.memory import CrossBatchMemory
from ms_kernels.api.modules import PairLoss
from ms_kernels.checks import Pairs
from ms_kernels.engine.autograd import differentiable_once, in_public_dtype
from ms_kernels.engine.fakes import row_statistics_fake
from ms_kernels.engine.refusals import below_autograd, refuse_derivatives
from ms_kernels.engine.saved import constants_of
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.made import spec_of
from ms_kernels.rules.mining import BoundedMining
from ms_kernels.rules.spec import unpack


def fits_a_graph(
    loss: PairLoss | CrossBatchMemory, embeddings: Tensor, sample_weight: Tensor | None
) -> bool:
    """Whether its gradient is known with the loss, and neither is of anything else."""
    if isinstance(loss, CrossBatchMemory) or not by_statistics(loss):
        return False
    # Which CUDA's kernels may compute for the whole batch.
    if isinstance(loss.mining, BoundedMining) and loss.mining.keeps_ties:
        if embeddings.device.type != "cpu":
            return False
    constant = sample_weight is None or not sample_weight.requires_grad
    return constant and loss.options["reduction"] != "none"


def loss_in_graph(
    how: Schedule, embeddings: Tensor, labels: Tensor, options: dict[str, Tensor | None]
) -> Tensor:
    """Of a loss that fits; how.group by its name."""
    loss = how.loss
    assert isinstance(loss, PairLoss)
    spec = spec_of(loss.rule, loss.mining, loss.shared)
    assert spec is not None
    names = "reduction", "backend", "ignore_label"
    told = spec.pack(), *(loss.options[name] for name in names), how.group, how.name
    once, _ = differentiable_once(Pairs(embeddings, labels, None, None, None, None))
    given = embeddings, labels, *options.values(), *told
    if torch.is_grad_enabled() and embeddings.requires_grad:
        value, *stats = _InGraph.apply(once, given)  # type: ignore[no-untyped-call]
    else:
        value, _, *stats = _distributed_loss(*given, False)
    if loss.keep_statistics:
        loss.keep(RowStatistics(*stats))
    return in_public_dtype(value, embeddings, loss.options["reduction"])


class _InGraph(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, given: tuple[Any, ...]) -> tuple[Tensor, ...]:
        with below_autograd():
            loss, dx, *stats = _distributed_loss(*given, True)
        constants_of(ctx, *stats)
        ctx.dtype = embeddings.dtype
        ctx.save_for_backward(dx)
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        (dx,) = ctx.saved_tensors
        return None if dloss is None else (dx * dloss).to(ctx.dtype), None


def _run(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    anchor_mask: Tensor | None,
    sample_weight: Tensor | None,
    spec: list[float],
    reduction: str,
    backend: str,
    ignore_label: int | None,
    group: str,
    schedule: str,
    gradient: bool,
) -> tuple[Tensor, ...]:
    """What the op runs: a graph holds no module, no group and no size of another process."""
    rules = unpack(spec)
    loss = PairLoss(
        rules.weighting,
        rules.mining,
        max_positive_similarity=rules.max_positive_similarity,
        normalize=rules.normalize,
        distance=rules.distance,
        reduction=reduction,
        backend=backend,
        ignore_label=ignore_label,
    )
    by_name: Any = dist.distributed_c10d
    how = Schedule(loss, by_name._resolve_process_group(group) if group else None, schedule)
    options = {"ids": ids, "anchor_mask": anchor_mask, "sample_weight": sample_weight}
    here = agreed(how, embeddings, labels, options, gradient)
    if schedule == "ring":
        found = ring_call(loss, here.pairs, here.exchange).reduced(here.weight)
    else:
        found = gathered(loss, here).call_of_batch().reduced(here.weight)
    dx = found.gradient.dx if gradient else None
    return found.loss, found.loss.new_empty(0) if dx is None else dx, *found.stats


def _run_fake(embeddings: Tensor, *given: Any) -> tuple[Tensor, ...]:
    stats = row_statistics_fake(embeddings)
    dx = embeddings.new_empty(embeddings.shape if given[-1] else (0,), dtype=stats[0].dtype)
    return embeddings.new_empty((), dtype=stats[0].dtype), dx, *stats


_library: Any = library.Library("ms_kernels", "FRAGMENT")  # type: ignore[no-untyped-call]
_library.define(
    "distributed_loss(Tensor embeddings, Tensor labels, Tensor? ids, Tensor? anchor_mask, "
    "Tensor? sample_weight, float[] spec, str reduction, str backend, int? ignore_label, "
    "str group, str schedule, bool gradient) -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, "
    "Tensor, Tensor, Tensor)"
)
_library.impl("distributed_loss", _run, "CompositeExplicitAutograd")
library.register_fake("ms_kernels::distributed_loss", _run_fake, lib=_library)
refuse_derivatives(_library, "distributed_loss")
_distributed_loss = torch.ops.ms_kernels.distributed_loss.default
