"""Recall@K, MAP@R and R-precision, from one exact search."""

from collections.abc import Sequence
from typing import NamedTuple, TypedDict, overload

import torch
from torch import Tensor
from typing_extensions import Unpack

from ms_kernels.reference import IGNORED
from ms_kernels.retrieval.search import Search, check_k, checked_search, found_by


class SearchOptions(TypedDict, total=False):
    """What every measure takes by keyword: see `retrieval_scores`."""

    ids: Tensor | None
    ref_ids: Tensor | None
    normalize: bool
    distance: str | None
    progress: bool | None


class QueryScores(NamedTuple):
    """Of each query, (N,), on the device of the embeddings.

    relevant: R, int64, the gallery rows of its label that it may find.
    first: int64, the rank, from 1, of the most similar relevant row; 0 where the search, whose
        depth is max(ks, R of all queries), did not reach it.
    average_precision: AP@R; NaN where R is 0.
    r_precision: NaN where R is 0.
    """

    relevant: Tensor
    first: Tensor
    average_precision: Tensor
    r_precision: Tensor


class RetrievalScores(NamedTuple):
    """Means over the queries that have a relevant row, from 0 to 1; NaN where none has.

    recall: Recall@K by K, such as {1: 0.8, 10: 0.95}.
    map_at_r, r_precision: see `retrieval_scores`; NaN where they were not asked for.
    queries: how many the means are over.
    without_relevant: how many were left out, since no gallery row has their label.
    of_queries: `QueryScores`, the same of each query.
    """

    recall: dict[int, float]
    map_at_r: float
    r_precision: float
    queries: int
    without_relevant: int
    of_queries: QueryScores


def retrieval_scores(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ks: Sequence[int] = (1, 2, 4, 8),
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    normalize: bool = True,
    distance: str | None = None,
    progress: bool | None = None,
) -> RetrievalScores:
    """Recall@K, MAP@R and R-precision of queries in a gallery, exactly, from one search by panels.

    A gallery row is relevant to a query if it has its label. With R relevant rows, and rel(i) 1
    where the i-th most similar row is relevant, else 0, of a query

        Recall@K    = max(rel(1), ..., rel(K))
        R-precision = (rel(1) + ... + rel(R)) / R
        AP@R        = (rel(1) P(1) + ... + rel(R) P(R)) / R,  P(i) = (rel(1) + ... + rel(i)) / i

    and the measures are means over queries; MAP@R that of AP@R. Queries without a relevant row,
    such as the only sample of a class, can find nothing: they are counted, and left out of the
    means.

    Args:
        embeddings: (N, D) queries; labels: (N,) integers.
        ref_emb: (M, D) gallery; ref_labels: (M,). Default: the queries, each leaving itself out.
        ks: the K of Recall@K, each from 1 to M, or to M - 1 without ref_emb.
        ids, ref_ids, normalize, distance, progress: see `nearest`, also for ties.

    Returns:
        `RetrievalScores`. The search has the depth of the largest R, and is not kept: memory is a
        panel of `ms_kernels.options.panel_bytes`, a copy of the rows, and a few numbers a query.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.

    Source: Jegou et al., Product Quantization for Nearest Neighbor Search, TPAMI 2011 (Recall@K, as
    used in metric learning by Oh Song et al., CVPR 2016); Musgrave et al., A Metric Learning
    Reality Check, ECCV 2020 (MAP@R, R-precision).

    >>> scores = retrieval_scores(embeddings, labels, ks=(1, 10))
    >>> scores.recall[10], scores.map_at_r, scores.without_relevant
    """
    tensors = embeddings, labels, ref_emb, ref_labels, ids, ref_ids
    search = checked_search(tensors, normalize, distance, progress)
    return _scored(search, _checked_ks("ks", ks, search), to_r=True)


@overload
def recall_at_k(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    k: int = 1,
    **options: Unpack[SearchOptions],
) -> float: ...


@overload
def recall_at_k(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    k: Sequence[int],
    **options: Unpack[SearchOptions],
) -> dict[int, float]: ...


def recall_at_k(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    k: int | Sequence[int] = 1,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    normalize: bool = True,
    distance: str | None = None,
    progress: bool | None = None,
) -> float | dict[int, float]:
    """The share of queries with a row of their label among the k most similar: see
    `retrieval_scores`. Of several k, such as k=(1, 10, 100), {k: share}.

    >>> recall_at_k(embeddings, labels)
    """
    tensors = embeddings, labels, ref_emb, ref_labels, ids, ref_ids
    search = checked_search(tensors, normalize, distance, progress)
    several = isinstance(k, Sequence)
    ks = _checked_ks("k", k if isinstance(k, Sequence) else (k,), search)
    found = _scored(search, ks, to_r=False).recall
    return found if several else found[ks[0]]


def map_at_r(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    **options: Unpack[SearchOptions],
) -> float:
    """The mean of AP@R, the average precision to the rank R: see `retrieval_scores`.

    options: ids, ref_ids, normalize, distance, progress, as there.
    """
    return retrieval_scores(embeddings, labels, ref_emb, ref_labels, ks=(), **options).map_at_r


def r_precision(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    **options: Unpack[SearchOptions],
) -> float:
    """The mean share of relevant rows among the R most similar: see `retrieval_scores`.

    options: ids, ref_ids, normalize, distance, progress, as there.
    """
    return retrieval_scores(embeddings, labels, ref_emb, ref_labels, ks=(), **options).r_precision


def _checked_ks(name: str, ks: Sequence[int], search: Search) -> list[int]:
    try:
        found = list(ks)
    except TypeError as error:
        raise TypeError(f"{name}: expected whole numbers, such as (1, 10), got {ks!r}") from error
    return [check_k(name, k, search) for k in found]


@torch.no_grad()
def _scored(search: Search, ks: list[int], to_r: bool) -> RetrievalScores:
    labels = search.pairs.labels
    n, device = labels.shape[0], labels.device
    relevant = _relevant(search)
    most = int(relevant.max()) if to_r and n else 0
    depth = max([most, *ks], default=0)
    wide = torch.float32 if device.type == "mps" else torch.float64  # which has no float64
    first = torch.zeros(n, dtype=torch.int64, device=device)
    precision = torch.zeros(n, dtype=wide, device=device)
    average = torch.zeros(n, dtype=wide, device=device)
    rank = torch.arange(1, depth + 1, device=device)
    for rows, _, index in found_by(search, depth) if depth else ():
        same = search.gallery_labels[index.clamp(min=0)] == labels[rows, None]
        same &= index >= 0
        first[rows] = torch.where(same.any(1), same.to(torch.uint8).argmax(1) + 1, 0)
        if to_r:
            same = same[:, :most] & (rank[:most] <= relevant[rows, None])
            so_far = same.cumsum(1)
            precision[rows] = same.sum(1).to(wide)
            average[rows] = (so_far.to(wide) / rank[:most] * same).sum(1)
    # 0 / 0 is NaN, as it should be of a query that has nothing to find.
    of_queries = QueryScores(relevant, first, average / relevant, precision / relevant)
    counts = relevant > 0
    queries = int(counts.sum())
    reached = [((first > 0) & (first <= k) & counts).sum() for k in ks]
    sums = [average / relevant.clamp(min=1), precision / relevant.clamp(min=1)]
    totals = torch.stack([total.to(wide) for total in [*reached, *(s.sum() for s in sums)]])
    *recall, mean_ap, mean_precision = (
        value / queries if queries else float("nan") for value in totals.tolist()
    )
    return RetrievalScores(
        dict(zip(ks, recall, strict=True)),
        mean_ap if to_r else float("nan"),
        mean_precision if to_r else float("nan"),
        queries,
        n - queries,
        of_queries,
    )


def _relevant(search: Search) -> Tensor:
    """(N,) gallery rows of each query's label, less those that its id leaves out."""
    labels, gallery_labels = search.pairs.labels, search.gallery_labels
    n = labels.shape[0]
    ids, others = search.pairs.ids, search.gallery_ids
    _, code = torch.unique(torch.cat([labels, gallery_labels]), return_inverse=True)
    if ids is None or others is None:
        return _count(code, n, None) - int(search.leaves_out_self)
    counts = others != IGNORED
    pairs = torch.stack([code, torch.cat([ids, others])], dim=1)
    _, same_row = torch.unique(pairs, dim=0, return_inverse=True)
    found = _count(code, n, counts) - _count(same_row, n, counts)
    return found.masked_fill_(ids == IGNORED, 0)


def _count(code: Tensor, n: int, counts: Tensor | None) -> Tensor:
    """Of each of the first n codes how often it stands among the others that count."""
    own, others = code[:n], code[n:]
    weight = torch.ones_like(others) if counts is None else counts.to(torch.int64)
    length = code.numel()
    total = torch.zeros(length, dtype=torch.int64, device=code.device)
    return total.index_add_(0, others, weight)[own]
