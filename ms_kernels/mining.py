"""The pairs that mining keeps, listed panel by panel."""

import torch
from torch import Tensor

from ms_kernels.backends.interface import Side
from ms_kernels.backends.panels import kept_pairs
from ms_kernels.checks import check_pairs
from ms_kernels.spec import MultiSimilaritySpec


def mined_pairs(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    epsilon: float | None = 0.1,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices of the pairs that enter the loss: (anchor, positive, anchor, negative).

    A pair (i, j) says that anchor i keeps candidate j, a row of embeddings or of ref_emb. Pairs
    come row by row, columns ascending, as int64. Memory is one panel of similarities and the
    result; the lengths depend on the data, so a GPU is waited for. Arguments and errors as in
    `multi_similarity_loss`.

    >>> anchor, positive, also_anchor, negative = mined_pairs(embeddings, labels)
    """
    spec = MultiSimilaritySpec(
        epsilon=epsilon, max_positive_similarity=max_positive_similarity, normalize=normalize
    )
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    anchors = Side(embeddings, pairs.labels, pairs.ids)
    candidates = None
    if ref_emb is not None and pairs.ref_labels is not None:
        candidates = Side(ref_emb, pairs.ref_labels, pairs.ref_ids)
    with torch.no_grad():
        return kept_pairs(anchors, candidates, spec)
