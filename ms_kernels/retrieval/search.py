"""Exact search for the most similar rows, by panels: never all N x M similarities at once."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.backends.plain.distance import similarities
from ms_kernels.backends.plain.sides import computed, full_precision
from ms_kernels.checks import Pairs, check_pairs, check_whole, plain_number
from ms_kernels.reference import IGNORED
from ms_kernels.retrieval.ranking import LOW, Packed, Ranking, Sorted
from ms_kernels.rules.made import options_of
from ms_kernels.rules.spec import PairOptions
from ms_kernels.settings import options

# A panel of fewer candidates would cost more in calls than in products.
WIDTH = 4096
# A search that takes fewer seconds shows no bar.
PATIENCE = 2.0


class Neighbours(NamedTuple):
    """The K most similar gallery rows of each query, the most similar first.

    similarities: (N, K) float32, or float64 for float64 rows; -inf where no row is left.
    indices: (N, K) int64 rows of the gallery; -1 where no row is left.
    """

    similarities: Tensor
    indices: Tensor


class Search(NamedTuple):
    """A checked search."""

    pairs: Pairs
    shared: PairOptions
    progress: bool | None

    @property
    def gallery(self) -> Tensor:
        return self.pairs.embeddings if self.pairs.ref_emb is None else self.pairs.ref_emb

    @property
    def gallery_labels(self) -> Tensor:
        return self.pairs.labels if self.pairs.ref_labels is None else self.pairs.ref_labels

    @property
    def gallery_ids(self) -> Tensor | None:
        return self.pairs.ids if self.pairs.ref_emb is None else self.pairs.ref_ids

    @property
    def leaves_out_self(self) -> bool:
        return self.pairs.ref_emb is None


def nearest(
    embeddings: Tensor,
    ref_emb: Tensor | None = None,
    *,
    k: int,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    normalize: bool = True,
    distance: str | None = None,
    progress: bool | None = None,
) -> Neighbours:
    """The k most similar gallery rows of each query, exactly, by panels of
    `ms_kernels.options.panel_bytes`.

    Of equal similarities the lower index comes first. Similarities are those of float32 products,
    or float64 for float64 rows, so rows that differ by less may come in either order, and so may
    equal rows: by its place in a panel a sum may be added up in another order, and differ in its
    last bit. Those beyond the range of their dtype count as its limits, and one that is not a
    number as the lowest.

    Args:
        embeddings: (N, D) queries, float16, bfloat16, float32 or float64, finite, on any device.
        ref_emb: (M, D) gallery. Default: the queries themselves, each leaving itself out, by its
            place, so that a copy of it is found.
        k: from 1 to M; to M - 1 without ref_emb.
        ids, ref_ids: (N,), (M,) integers; rows of the query's id are left out of its search, and
            those of the id IGNORED out of all.
        normalize, distance: how rows are compared, as in `pair_loss`: by default their cosine.
        progress: a bar of tqdm. Default: one on a terminal where a search takes more than 2 s and
            tqdm is installed. On a GPU, which is not waited for, it runs ahead.

    Returns:
        `Neighbours`, of O(N k) numbers; on the way there is a panel, and a copy of the rows in the
        dtype of the products.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.
        ImportError: for progress=True without tqdm.

    >>> nearest(embeddings, k=4).indices[0]
    """
    labels, ref_labels = _no_labels(embeddings), _no_labels(ref_emb)
    tensors = embeddings, labels, ref_emb, ref_labels, ids, ref_ids
    search = checked_search(tensors, normalize, distance, progress)
    k = check_k("k", k, search)
    parts = [(sim, index) for _, sim, index in found_by(search, k)]
    if not parts:
        none = embeddings.new_zeros(0, k)
        return Neighbours(none.to(compute_dtype(none)), none.to(torch.int64))
    sim, index = zip(*parts, strict=True)
    return Neighbours(torch.cat(sim), torch.cat(index))


def checked_search(
    tensors: tuple[Any, Any, Any, Any, Any, Any],
    normalize: bool,
    distance: str | None,
    progress: bool | None,
) -> Search:
    """tensors: as `check_pairs` takes them."""
    shared = options_of(None, normalize, distance)
    embeddings, labels, ref_emb, ref_labels, ids, ref_ids = tensors
    if ref_labels is labels and isinstance(labels, Tensor):
        # The check of pairs takes the same two objects for a batch that leaves out itself. A
        # gallery that is given is one, whether it is the queries or a copy of them.
        ref_labels = labels.view_as(labels)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    if pairs.labels.ndim != 1:
        raise ValueError(
            f"labels: expected shape ({len(pairs.labels)},), one label a row, got "
            f"sets of labels {tuple(pairs.labels.shape)}"
        )
    if progress not in (None, True, False):
        raise TypeError(f"progress: expected True, False or None, got {progress!r}")
    if progress:
        _bar_class()
    search = Search(pairs, shared, progress)
    if search.gallery.shape[0] > LOW:
        raise ValueError(f"ref_emb: expected at most {LOW} rows, got {search.gallery.shape[0]}")
    _check_finite("embeddings", pairs.embeddings)
    if pairs.ref_emb is not None:
        _check_finite("ref_emb", pairs.ref_emb)
    return search


def check_k(name: str, k: object, search: Search) -> int:
    """So many neighbours, if they are there."""
    rows = search.gallery.shape[0]
    most = rows - search.leaves_out_self
    if most < 1:
        wanted = "at least 2 rows, one to be found by another" if search.leaves_out_self else "rows"
        where = "embeddings" if search.leaves_out_self else "ref_emb"
        raise ValueError(f"{where}: expected {wanted}, got {rows}")
    but = ", one of which is the query" if search.leaves_out_self else ""
    number = plain_number(k)
    check_whole(name, number, most, " of neighbours", f"; the gallery has {rows} rows{but}")
    return int(number)


@torch.no_grad()
def found_by(search: Search, k: int) -> Iterator[tuple[slice, Tensor, Tensor]]:
    """Blocks of queries, with (rows, k) similarities and indices of each; a GPU is not waited
    for."""
    pairs, shared = search.pairs, search.shared
    x = computed(pairs.embeddings, shared.normalize)
    r = x if search.leaves_out_self else computed(search.gallery, shared.normalize)
    kind: type[Packed] | type[Sorted] = Sorted if x.dtype == torch.float64 else Packed
    m = r.shape[0]
    width = min(m, max(WIDTH, 2 * k))
    height = max(1, options.panel_bytes // (kind.BYTES * (width + 2 * k)))
    with _bar(x.shape[0], search.progress) as bar:
        for start in range(0, x.shape[0], height):
            rows = slice(start, min(start + height, x.shape[0]))
            ranking: Ranking = kind(rows.stop - start, k, x)
            for first in range(0, m, width):
                columns = slice(first, min(first + width, m))
                with full_precision(x):
                    sim = similarities(x[rows], r[columns], shared.distance, None)
                if not shared.normalize or shared.distance is not None:
                    most = torch.finfo(sim.dtype).max
                    sim = sim.nan_to_num_(nan=-most, posinf=most, neginf=-most)
                ranking.add(sim, first, _excluded(search, rows, columns))
            yield rows, *ranking.best()
            bar.update(rows.stop - start)


def _excluded(search: Search, rows: slice, columns: slice) -> Tensor:
    """(rows, columns) bool; empty where every pair of the panel counts."""
    device = search.pairs.embeddings.device
    ids, others = search.pairs.ids, search.gallery_ids
    shape = rows.stop - rows.start, columns.stop - columns.start
    if ids is not None and others is not None:
        own, theirs = ids[rows, None], others[None, columns]
        found = (own == theirs) | (own == IGNORED) | (theirs == IGNORED)
    elif search.leaves_out_self and rows.start < columns.stop and columns.start < rows.stop:
        found = torch.zeros(shape, dtype=torch.bool, device=device)
    else:
        return torch.zeros(0, dtype=torch.bool, device=device)
    if search.leaves_out_self:
        found.diagonal(rows.start - columns.start).fill_(True)
    return found


def _no_labels(x: Any) -> Any:
    """For the check of pairs, which asks for some."""
    if isinstance(x, Tensor) and x.ndim and x.layout == torch.strided and not x.is_nested:
        return torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
    return None if x is None else torch.zeros(0, dtype=torch.int64)


def _check_finite(name: str, x: Tensor) -> None:
    bad = ~x.isfinite().all(1)
    count = int(bad.sum())
    if count:
        raise ValueError(
            f"{name}: expected finite numbers, got {count} of {x.shape[0]} rows with NaN or "
            f"infinity, the first at {int(bad.to(torch.uint8).argmax())}; leave them out, or look "
            "where the network goes wrong"
        )


class _NoBar:
    def __enter__(self) -> "_NoBar":
        return self

    def __exit__(self, *_: object) -> None: ...

    def update(self, n: int) -> None: ...


def _bar(queries: int, progress: bool | None) -> Any:
    if progress is False:
        return _NoBar()
    try:
        bar = _bar_class()
    except ImportError:  # asked for, it was looked for before
        return _NoBar()
    delay, disable = (PATIENCE, None) if progress is None else (0.0, False)
    return bar(total=queries, desc="retrieval", unit="query", delay=delay, disable=disable)


def _bar_class() -> Any:
    try:
        from tqdm import tqdm
    except ImportError as error:
        raise ImportError(
            "progress: expected tqdm to be installed for True: pip install tqdm, or leave it None"
        ) from error
    return tqdm
