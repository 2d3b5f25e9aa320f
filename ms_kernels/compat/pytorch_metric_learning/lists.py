"""Losses of pairs that are listed, with or without labels: O(L) numbers, never N x M."""

from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.roads import Formula, similarities


class Listed(NamedTuple):
    """Pairs with their similarities; n anchors."""

    anchors: Tensor
    positives: Tensor
    pos_similarity: Tensor
    others: Tensor
    negatives: Tensor
    neg_similarity: Tensor
    n: int


def listed(measure: Measure, x: Tensor, r: Tensor, lists: tuple[Tensor, ...]) -> Listed:
    """Of four lists, each pair as often as it is listed."""
    anchors, positives, others, negatives = (index.to(x.device) for index in lists)
    # One list, for of many pairs all distances are computed once.
    ends = torch.cat([anchors, others]), torch.cat([positives, negatives])
    pos, neg = torch.split(similarities(measure, x, r, *ends), [len(anchors), len(others)])
    return Listed(anchors, positives, pos, others, negatives, neg, len(x))


def each_once(lists: tuple[Tensor, ...], candidates: int) -> tuple[Tensor, ...]:
    """Each pair once, as in a mask of pairs, in which none is of both kinds."""
    anchors, positives, others, negatives = lists
    pos = torch.unique(anchors * candidates + positives)
    neg = torch.unique(others * candidates + negatives)
    if torch.isin(pos, neg, assume_unique=True).any():
        raise AssertionError(
            "indices_tuple: expected pairs that are either positive or negative, got one that is "
            "listed as both"
        )
    return pos // candidates, pos % candidates, neg // candidates, neg % candidates


def rows_of_lists(formula: Formula, of: Listed) -> Tensor:
    """(n,) numbers of a formula of a panel; 0 of an anchor that is in no list.

    Anchors with about as many pairs share a panel, which is at most half empty.
    """
    anchors = torch.cat([of.anchors, of.others])
    order = anchors.argsort(stable=True)
    similarity = torch.cat([of.pos_similarity, of.neg_similarity])[order]
    positive = order < len(of.anchors)
    count = torch.bincount(anchors, minlength=of.n)
    first = count.cumsum(0) - count
    found = similarity.new_zeros(of.n)
    most, least = int(count.max()) if of.n else 0, 0
    width = 1
    while least < most:
        rows = ((count > least) & (count <= width)).nonzero()[:, 0]
        if len(rows):
            place = torch.arange(width, device=count.device)
            inside = place < count[rows, None]
            index = torch.where(inside, first[rows, None] + place, 0)
            sign = positive[index]
            value = formula(similarity[index], inside & sign, inside & ~sign)
            found = found.index_copy(0, rows, value)
        least, width = width, 2 * width
    return found
