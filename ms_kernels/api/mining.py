"""The pairs that mining keeps, listed panel by panel."""

import torch
from torch import Tensor

from ms_kernels.api.counting import row_weights, without_label
from ms_kernels.api.hints import names_the_way
from ms_kernels.backends.plain.sides import Sides
from ms_kernels.checks import check_pairs, check_rule
from ms_kernels.engine.refusals import is_batched, refuse_tracing
from ms_kernels.engine.sides import sides_of
from ms_kernels.rules.made import options_of
from ms_kernels.rules.mining import Mining, MultiSimilarityMining, kept_pairs, mining_of

EPSILON = MultiSimilarityMining.epsilon


@names_the_way
def mined_pairs(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    epsilon: float | None = EPSILON,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    distance: str | None = None,
    mining: Mining | None = None,
    ignore_label: int | None = None,
    anchor_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Indices of the pairs that enter the loss: (anchor, positive, anchor, negative).

    A pair (i, j) says that anchor i keeps candidate j, a row of embeddings or of ref_emb. Pairs
    come row by row, columns ascending, as int64. Memory is one panel of similarities and the
    result; the lengths depend on the data, so a GPU is waited for.

    mining: a mining rule, which takes the place of epsilon. Default: that of the Multi-Similarity
        loss, MultiSimilarityMining(epsilon), or NoMining() for an epsilon of None.

    Other arguments and errors as in `multi_similarity_loss`.

    >>> anchor, positive, also_anchor, negative = mined_pairs(embeddings, labels)
    >>> mined_pairs(embeddings, labels, mining=HardestMining())
    """
    shared = options_of(max_positive_similarity, normalize, distance)
    if mining is None:
        mining = mining_of(epsilon)
    elif epsilon != EPSILON:
        raise ValueError(
            f"epsilon: expected none because mining was given, got {epsilon}; use "
            "mining=MultiSimilarityMining(epsilon), or mining=NoMining() for None"
        )
    check_rule("mining", mining, Mining)
    refuse_tracing("mined_pairs")
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids, one_dtype=False)
    weight = row_weights(pairs, ignore_label, anchor_mask, None)
    pairs = without_label(pairs, ignore_label)
    if any(map(is_batched, pairs)):
        raise RuntimeError(
            "mined_pairs: expected one batch, got several under vmap, whose numbers of pairs "
            "differ; call it once for each"
        )
    none = torch.zeros(0, 2, dtype=torch.int64, device=embeddings.device)
    found = [none], [none]
    with torch.no_grad(), torch.autocast(embeddings.device.type, enabled=False):
        for panel in Sides(*sides_of(pairs), shared).panels():
            kept = kept_pairs(mining, panel.sim, panel.positive, panel.negative)
            for mask, parts in zip(kept, found, strict=True):
                if weight is not None:
                    mask = mask & (weight[panel.rows, None] > 0)
                indices = mask.nonzero()
                indices[:, 0] += panel.rows.start
                parts.append(indices)
    positive, negative = (torch.cat(parts) for parts in found)
    return positive[:, 0], positive[:, 1], negative[:, 0], negative[:, 1]
