"""Reducers of pytorch-metric-learning without the losses of single pairs: from sums and counts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from pytorch_metric_learning import reducers
from pytorch_metric_learning.reducers.per_anchor_reducer import aggregation_func
from torch import Tensor

KINDS = {
    reducers.MeanReducer: "mean",
    reducers.SumReducer: "sum",
    reducers.AvgNonZeroReducer: "active",
}

LossDict = dict[str, dict[str, Any]]


class Totals(NamedTuple):
    """Of pairs, or triplets, that need not be listed."""

    loss: Tensor  # () their sum
    number: Callable[[], Tensor]  # () how many they are
    active: Callable[[], Tensor]  # () how many of them cost something
    means: Tensor | None = None  # (N,) of each anchor


def reducer_of(module: Any, name: str) -> Any:
    """What reduces the sub-loss of this name."""
    reducer = module.reducer
    if not isinstance(reducer, reducers.MultipleReducers):
        return reducer
    own = reducer.reducers
    return own[name] if name in own else reducer.default_reducer


def kind_of(reducer: Any) -> str | None:
    """None of a reducer that needs the losses of single pairs."""
    if type(reducer) is reducers.PerAnchorReducer:
        return "anchors" if reducer.aggregation_func is aggregation_func else None
    if type(reducer) is reducers.ThresholdReducer and (reducer.low, reducer.high) == (0, None):
        return "active"  # as the library's examples write AvgNonZeroReducer
    return KINDS.get(type(reducer))


def unserved_reducer(module: Any, names: tuple[str, ...], kinds: tuple[str, ...]) -> str | None:
    """Why sub-losses cannot be reduced without the losses of single pairs, if so."""
    for name in names:
        reducer = reducer_of(module, name)
        if kind_of(reducer) not in kinds:
            return f"reducer={type(reducer).__name__}"
    return None


def reduced(module: Any, name: str, totals: Totals) -> dict[str, Any]:
    """The sub-loss as its reducer takes it: reduced, or with a loss for each anchor."""
    reducer = reducer_of(module, name)
    kind = kind_of(reducer)
    if kind == "anchors":
        assert totals.means is not None
        return elements(totals.means)
    divisor = None
    if kind != "sum":
        divisor = totals.number() if kind == "mean" else totals.active()
        divisor = divisor.clamp(min=1).to(totals.loss)
    value = totals.loss if divisor is None else totals.loss / divisor
    module.sizes[name] = totals
    return {"losses": value, "indices": None, "reduction_type": "already_reduced"}


def is_linear(module: Any, name: str) -> bool:
    """Whether the sub-loss is a sum of losses over a number."""
    return kind_of(reducer_of(module, name)) in ("mean", "sum", "active")


def are_summed(module: Any, names: tuple[str, ...]) -> bool:
    """Whether the loss is the sum of all pairs of the sub-losses, which are not looked at."""
    known = type(module.reducer) in (reducers.SumReducer, reducers.MultipleReducers)
    return known and all(kind_of(reducer_of(module, name)) == "sum" for name in names)


def record_sizes(module: Any) -> None:
    """`losses_size` and the like, which a reducer reads off the losses of single pairs."""
    for name, totals in module.sizes.items():
        reducer = reducer_of(module, name)
        if reducer.collect_stats:
            reducer.losses_size = int(totals.number())
            if isinstance(reducer, reducers.ThresholdReducer):
                reducer.num_past_filter = reducer.num_above_low = int(totals.active())


def elements(losses: Tensor, indices: Tensor | None = None) -> dict[str, Any]:
    """A loss for each anchor, for any reducer."""
    if indices is None:
        indices = torch.arange(len(losses), device=losses.device)
    return {"losses": losses, "indices": indices, "reduction_type": "element"}


def singles(losses: Tensor, indices: tuple[Tensor, ...], kind: str) -> dict[str, Any]:
    """A loss for each pair or triplet that is listed, for any reducer; of none, 0."""
    if len(losses) == 0:
        return {"losses": 0, "indices": None, "reduction_type": "already_reduced"}
    return {"losses": losses, "indices": indices, "reduction_type": kind}
