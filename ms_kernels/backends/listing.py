"""Gradient of a loss that its statistics do not give: pairs are compared with pairs once more."""

from collections.abc import Callable

import torch
from torch import Tensor

from ms_kernels.backends.interface import Found, Side, Term, compute_dtype
from ms_kernels.rules.spec import PairSpec

LossAndGradient = Callable[[Side, Side | None, PairSpec, bool, bool, Tensor | None], Found]


def gradient_of_anchors(
    loss_and_gradient: LossAndGradient,
    rows: Side,
    columns: Side | None,
    spec: PairSpec,
    row_term: Term | None,
    column_term: Term | None,
) -> Tensor:
    """`embedding_gradient` by a backend's `loss_and_gradient`: see interface.py for what the sides
    must hold."""
    if columns is None and row_term is not None and row_term is column_term:
        dx = loss_and_gradient(rows, None, spec, True, False, row_term.dloss)[2]
        assert dx is not None
        return dx
    if columns is None:
        ids = rows.ids
        if ids is None:
            ids = torch.arange(len(rows.labels), device=rows.labels.device)
        rows = columns = Side(rows.embeddings, rows.labels, ids)
    parts = []
    if row_term is not None:
        parts.append(loss_and_gradient(rows, columns, spec, True, False, row_term.dloss)[2])
    if column_term is not None:
        parts.append(loss_and_gradient(columns, rows, spec, False, True, column_term.dloss)[3])
    found = [part for part in parts if part is not None]
    if not found:
        return torch.zeros_like(rows.embeddings, dtype=compute_dtype(rows.embeddings))
    return found[0] if len(found) == 1 else found[0] + found[1]
