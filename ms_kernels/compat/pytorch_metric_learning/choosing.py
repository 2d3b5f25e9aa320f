"""From the arguments of a call to its pairs: chosen by a rule, or listed."""

from typing import Any, TypeVar

import torch
from torch import Tensor

from ms_kernels.compat.pytorch_metric_learning.fallible import Unserved
from ms_kernels.compat.pytorch_metric_learning.measures import Measure, measure_of
from ms_kernels.compat.pytorch_metric_learning.mined import MinedPairs
from ms_kernels.compat.pytorch_metric_learning.pairs import Call, Chosen, by_labels

Rule = TypeVar("Rule")
Lists = tuple[Tensor, ...]


def rule_of(kind: type[Rule], **options: float) -> Rule:
    """With options that pytorch-metric-learning does not check."""
    try:
        return kind(**options)
    except (TypeError, ValueError) as error:
        raise Unserved(", ".join(f"{name}={value}" for name, value in options.items())) from error


def served_measure(distance: Any) -> Measure:
    measure = measure_of(distance)
    if isinstance(measure, str):
        raise Unserved(measure)
    return measure


def choose(call: Call, measure: Measure) -> Chosen | Lists:
    """Pairs by a rule if there is one; else the lists that were given."""
    indices = call.indices_tuple
    if indices is None:
        if call.labels is None:
            raise ValueError("labels and indices_tuple cannot both be None")
        return by_labels(call)
    if isinstance(indices, MinedPairs):
        chosen = indices.chosen(call.embeddings, call.ref_emb, measure)
        return tuple(indices) if chosen is None else chosen
    return tuple(indices)


def as_pairs(lists: Lists) -> Lists:
    """Four lists; triplets as the pairs that they are made of."""
    if len(lists) == 3:
        anchors, positives, negatives = lists
        return anchors, positives, anchors, negatives
    return lists


def are_too_few(module: Any, lists: Lists) -> bool:
    """By pytorch-metric-learning's rule for small batches."""
    most = 1 if module.exact_small_batches else 0
    return all(len(index) <= most for index in lists)


def unless_too_few(module: Any, loss: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
    """The loss, or 0 by the same rule, of () numbers of pairs: no GPU is waited for."""
    if not module.exact_small_batches:
        return loss
    return torch.where((positives <= 1) & (negatives <= 1), 0, loss)
