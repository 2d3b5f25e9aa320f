"""Shapes and dtypes of what the ops return, for who traces them."""

from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype


def row_statistics_fake(embeddings: Tensor, *_: object) -> tuple[Tensor, ...]:
    n = embeddings.shape[0]
    stats = [embeddings.new_empty(n, dtype=compute_dtype(embeddings)) for _ in range(5)]
    counts = [embeddings.new_empty(n, dtype=torch.int64) for _ in range(2)]
    return (*stats[:4], *counts, stats[4])


def embedding_gradient_fake(embeddings: Tensor, *_: object) -> Tensor:
    return embeddings.new_empty(embeddings.shape, dtype=compute_dtype(embeddings))


def loss_and_gradient_fake(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    need_dx: bool,
    need_dr: bool,
    *_: object,
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(embeddings)
    n = embeddings.shape[0]
    return (
        embeddings.new_empty(n, dtype=dtype),
        embeddings.new_empty(n, dtype=torch.int64),
        embeddings.new_empty(embeddings.shape if need_dx else (0,), dtype=dtype),
        embeddings.new_empty(
            ref_emb.shape if need_dr and ref_emb is not None else (0,), dtype=dtype
        ),
    )


def reduced_loss_fake(*given: Any) -> tuple[Tensor, ...]:
    embeddings, wide = given[0], given[7]
    rows, _kept, dx, dr = loss_and_gradient_fake(*given[:6], *given[8:])
    loss = embeddings.new_empty((), dtype=rows.dtype if wide else embeddings.dtype)
    return loss, dx, dr


def learned_gradient_fake(*given: Any) -> tuple[Tensor, ...]:
    _, option_values, need_dx, need_dr, *_ = given[6:]
    _, _, dx, dr = loss_and_gradient_fake(*given[:6], need_dx, need_dr)
    return dx, dr, torch.empty_like(option_values)


def counted_loss_fake(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    need_dx: bool,
    need_dr: bool,
    need_options: bool,
    spec: list[float],
    backend: str,
    dloss: Tensor | None,
    option_values: Tensor | None,
) -> tuple[Tensor, ...]:
    pairs = embeddings, labels, ids, ref_emb, ref_labels, ref_ids
    losses, _, dx, dr = loss_and_gradient_fake(*pairs, need_dx, need_dr)
    doptions = losses.new_empty(0)
    if need_options and option_values is not None:
        doptions = torch.empty_like(option_values)
    return losses, *row_statistics_fake(embeddings), dx, dr, doptions


def row_loss_fake(statistics: list[Tensor], *_: object) -> Tensor:
    return torch.empty_like(statistics[0])
