"""Which rows a call is about, in the terms of pytorch-metric-learning and in those of kernels."""

from typing import Any, NamedTuple

import torch
from pytorch_metric_learning.utils import common_functions
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.compat.pytorch_metric_learning.fallible import Unserved
from ms_kernels.rules.mining import NO_MINING, Mining


class Call(NamedTuple):
    """The arguments of a loss, checked; in a batch by itself ref_emb is embeddings, and ref_labels
    are labels."""

    embeddings: Tensor
    labels: Tensor | None
    indices_tuple: Any
    ref_emb: Tensor
    ref_labels: Tensor | None


class Chosen(NamedTuple):
    """Pairs that a rule chooses, and the tuple that stands for them, if one was given."""

    pairs: Pairs
    mining: Mining = NO_MINING
    mined: Any = None


def call_of(
    embeddings: Tensor,
    labels: Tensor | None,
    indices_tuple: Any,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
) -> Call:
    """With the errors of pytorch-metric-learning, and labels on the device of their rows."""
    common_functions.check_shapes(embeddings, labels)
    if labels is not None:
        labels = labels.to(embeddings.device)
    sides = common_functions.set_ref_emb(embeddings, labels, ref_emb, ref_labels)
    for side in (embeddings, sides[0]):
        if side.ndim != 2:
            raise ValueError(
                f"embeddings must be a 2D tensor of shape (batch_size, embedding_size), got "
                f"{tuple(side.shape)}"
            )
    return Call(embeddings, labels, indices_tuple, *sides)


def by_labels(call: Call, drop_rows: bool = False) -> Chosen:
    """All pairs. Where the reference labels are the labels themselves, or none are given, pairs
    i = i are none.

    drop_rows: pairs i = i are none where the reference rows are the rows themselves.
    """
    x, labels, _, r, ref_labels = call
    assert labels is not None
    if ref_labels is None:
        if drop_rows:
            raise ValueError(
                "ref_labels: expected a tensor because ref_emb was given, got None, which only "
                "losses of pairs take for the labels of the batch"
            )
        if len(r) != len(x):
            raise Unserved(f"ref_emb of {len(r)} rows without ref_labels, for a batch of {len(x)},")
        ref_labels = labels
    same_rows, same_labels = r is x, ref_labels is labels
    own, others = as_integers(labels, ref_labels)
    if same_rows and same_labels:
        return Chosen(Pairs(x, own, None, None, None, None))
    x, r = of_one_dtype(x, r)
    if not (same_rows if drop_rows else same_labels):
        return Chosen(Pairs(x, own, None, r, others, None))
    ids = (torch.arange(len(side), device=x.device) for side in (own, others))
    return Chosen(Pairs(x, own, next(ids), r, others, next(ids)))


def as_integers(labels: Tensor, ref_labels: Tensor) -> tuple[Tensor, Tensor]:
    """Labels of any dtype, of which only equality counts."""
    if not labels.is_floating_point() and not ref_labels.is_floating_point():
        own = labels.long() if labels.dtype == torch.bool else labels
        others = ref_labels.long() if ref_labels.dtype == torch.bool else ref_labels
        return own, own if ref_labels is labels else others
    _, both = torch.unique(torch.cat([labels, ref_labels]), return_inverse=True)
    return both[: len(labels)], both[len(labels) :]


def of_one_dtype(x: Tensor, r: Tensor) -> tuple[Tensor, Tensor]:
    if x.dtype == r.dtype:
        return x, r
    dtype = torch.promote_types(x.dtype, r.dtype)
    return x.to(dtype), r.to(dtype)


def candidates_of(pairs: Pairs) -> Tensor:
    """Rows of the other side."""
    return pairs.embeddings if pairs.ref_emb is None else pairs.ref_emb


def count_of_label(pairs: Pairs) -> Tensor:
    """(N,) candidates with the label of each anchor, itself too where it is among them."""
    labels = pairs.labels if pairs.ref_labels is None else pairs.ref_labels
    ascending = labels.sort().values
    upto = torch.searchsorted(ascending, pairs.labels.contiguous(), right=True)
    return upto - torch.searchsorted(ascending, pairs.labels.contiguous())


def numbers_of_pairs(pairs: Pairs) -> tuple[Tensor, Tensor]:
    """(N,) positives and negatives of each anchor, from labels and ids alone. Of ids each anchor's
    is that of one candidate of its label, or of none."""
    same = count_of_label(pairs)
    negatives = len(candidates_of(pairs)) - same
    if pairs.ref_emb is None:
        return same - 1, negatives
    if pairs.ids is not None and pairs.ref_ids is not None:
        return same - torch.isin(pairs.ids, pairs.ref_ids).long(), negatives
    return same, negatives
