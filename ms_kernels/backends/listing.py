"""Pairs that are listed: ordinals of the positives, and `embedding_gradient` by a sweep over all
pairs of the anchors."""

from collections.abc import Callable

import torch
from torch import Tensor

from ms_kernels.backends.interface import Found, Side, Term, compute_dtype
from ms_kernels.rules.spec import PairSpec

# `loss_and_gradient` of a backend, of what the anchors' losses are worth and their statistics.
OfTerm = Callable[[Side, Side | None, PairSpec, bool, bool, Term], Found]


def gradient_of_anchors(
    of_term: OfTerm,
    rows: Side,
    columns: Side | None,
    spec: PairSpec,
    row_term: Term | None,
    column_term: Term | None,
) -> Tensor:
    """Of losses whose pairs are compared with pairs once more, see interface.py for what the sides
    must hold."""
    if columns is None and row_term is not None and row_term is column_term:
        dx = of_term(rows, None, spec, True, False, row_term)[2]
        assert dx is not None
        return dx
    if columns is None:
        ids = rows.ids
        if ids is None:
            ids = torch.arange(len(rows.labels), device=rows.labels.device)
        rows = columns = Side(rows.embeddings, rows.labels, ids)
    parts = []
    if row_term is not None:
        parts.append(of_term(rows, columns, spec, True, False, row_term)[2])
    if column_term is not None:
        parts.append(of_term(columns, rows, spec, False, True, column_term)[3])
    found = [part for part in parts if part is not None]
    if not found:
        return torch.zeros_like(rows.embeddings, dtype=compute_dtype(rows.embeddings))
    return found[0] if len(found) == 1 else found[0] + found[1]


def ordinals_in_classes(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Which of its class each sample is, (M,), and how many the largest class has, (1,)."""
    ascending, order = labels.sort(stable=True)
    place = torch.arange(len(labels), device=labels.device)
    starts = torch.ones_like(place, dtype=torch.bool)
    starts[1:] = ascending[1:] != ascending[:-1]
    first = torch.where(starts, place, 0).cummax(0).values
    ordinals = torch.empty_like(place).index_copy_(0, order, place - first)
    most = torch.cat([ordinals + 1, place.new_zeros(1)]).amax(0, keepdim=True)
    return ordinals, most
