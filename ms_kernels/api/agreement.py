"""What the processes of a group tell one another before a loss of all their rows."""

import dataclasses
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.api.counting import check_one_label, without_label
from ms_kernels.api.memory import CrossBatchMemory
from ms_kernels.api.modules import PairLoss
from ms_kernels.checks import Pairs, check_pairs
from ms_kernels.engine.autograd import differentiable_once
from ms_kernels.engine.exchange import Exchange


class Schedule(NamedTuple):
    """Whose loss, of which processes, and how rows get about."""

    loss: PairLoss | CrossBatchMemory
    group: Any
    name: str


class Here(NamedTuple):
    """The rows of this process, what each counts, and its way to the others."""

    pairs: Pairs
    weight: Tensor | None
    exchange: Exchange


def agreed(
    how: Schedule,
    embeddings: Tensor,
    labels: Tensor,
    options: dict[str, Tensor | None],
    gradient: bool,
) -> Here:
    """What this process gives, once all have told that theirs fits."""
    memory = how.loss if isinstance(how.loss, CrossBatchMemory) else None
    loss = how.loss if memory is None else memory.loss
    assert isinstance(loss, PairLoss)
    ids = options["ids"]
    exchange = Exchange(how.group, _device(embeddings))
    weight, error, pairs = None, None, None
    try:
        pairs = check_pairs(embeddings, labels, None, None, ids, None)
        check_one_label("DistributedLoss", pairs.labels)
        differentiable_once(pairs, "DistributedLoss")
        weight = loss.weights_of(pairs, options["anchor_mask"], options["sample_weight"])
        if weight is not None and weight.requires_grad:
            raise ValueError(
                "sample_weight: expected a constant in a loss of several processes, got one "
                "that requires a gradient; use sample_weight.detach()"
            )
        if memory is not None:
            refuse_counting(options)
            memory.check(embeddings)
    except (TypeError, ValueError, RuntimeError) as refused:
        error = f"{type(refused).__name__}: {refused}"
    facts = {} if error else _facts(how, embeddings, ids, weight)
    exchange.agree(facts, 0 if error else embeddings.shape[0], gradient and error is None, error)
    assert pairs is not None
    if loss.options["reduction"] == "none" and len(exchange.gradients) > 1:
        raise ValueError(
            "embeddings: expected to require a gradient on every rank or on none with "
            "reduction='none', whose backward pass is of all; got some of either"
        )
    if pairs.ids is None and memory is None:
        places = torch.arange(exchange.own.start, exchange.own.stop, device=embeddings.device)
        pairs = Pairs(*pairs[:2], places, None, None, None)
    return Here(without_label(pairs, loss.options["ignore_label"]), weight, exchange)


def _facts(
    how: Schedule, embeddings: Tensor, ids: Tensor | None, weight: Tensor | None
) -> dict[str, str]:
    """What must be the same on every process."""
    given = ("None", "given")
    facts = {
        "schedule": repr(how.name),
        "embeddings": f"shape (N, {embeddings.shape[1]}) of {embeddings.dtype}",
        "ids": given[ids is not None],
        "weights of anchors": given[weight is not None],
    }
    if isinstance(how.loss, CrossBatchMemory):
        # Of a GPU these are asked when it is waited for anyway.
        facts["loss"] = f"{how.loss.extra_repr()}, {_described(how.loss.loss)}"
        facts["memory"] = f"training={how.loss.training}, {how.loss.ring.progress()}"
    else:
        facts["loss"] = _described(how.loss)
    return facts


def refuse_counting(options: dict[str, Tensor | None]) -> None:
    if options["anchor_mask"] is not None or options["sample_weight"] is not None:
        raise ValueError(
            "anchor_mask, sample_weight: expected None with a CrossBatchMemory, got a tensor"
        )


def _device(embeddings: object) -> torch.device:
    return embeddings.device if isinstance(embeddings, Tensor) else torch.device("cpu")


def _described(loss: PairLoss) -> str:
    options = (f.name for f in dataclasses.fields(loss.weighting))
    named = (f"{name}={_told(getattr(loss.weighting, name))}" for name in options)
    rule = f"{type(loss.weighting).__name__}({', '.join(named)})"
    return f"{rule}, {loss.mining!r}, {loss.options}"


def _told(option: float | Tensor) -> object:
    """On a GPU not the value of a tensor: it would be waited for."""
    if not isinstance(option, Tensor):
        return option
    value = option.detach().item() if option.device.type == "cpu" else "of a GPU"
    return f"{value} ({'learns' if option.requires_grad else 'a tensor'})"
