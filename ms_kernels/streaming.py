"""Losses of your own, streamed: any function of a panel of similarities, in O(panel * M) memory."""

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ms_kernels.autograd import in_public_dtype, reduce_rows
from ms_kernels.backends.sides import Sides
from ms_kernels.backends.sweep import TEMPORARIES, RowFunction, row_losses
from ms_kernels.checks import check_choice, check_pairs, check_rule
from ms_kernels.mining_rules import NO_MINING, Mining
from ms_kernels.ops import sides_of
from ms_kernels.reference import REDUCTIONS
from ms_kernels.settings import options
from ms_kernels.spec import MultiSimilaritySpec


def streamed_loss(
    row_loss: RowFunction,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    mining: Mining = NO_MINING,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    reduction: str = "mean",
) -> Tensor:
    """A pair loss written in plain PyTorch, panel by panel: never all N x M similarities at once.

    Args:
        row_loss: row_loss(similarity, positive, negative) of some anchors: (rows, M) similarities
            and two (rows, M) masks of pairs that mining keeps, to a loss for each, (rows,). It is
            called again in the backward pass and must give the same then: no randomness. Entries in
            neither mask are the anchors themselves and what mining drops.
        mining: a mining rule. Default: every pair.
        The rest as in `multi_similarity_loss`; any device, and under torch.compile.

    Returns:
        The reduced loss in the embeddings' dtype (half is computed in float32), differentiable in
        embeddings and ref_emb. A similarity that is not finite makes its anchor's loss NaN.

    The Multi-Similarity loss without mining in five lines:

    >>> def row_loss(similarity, positive, negative):
    ...     pull = torch.where(positive, -2 * (similarity - 0.5), -torch.inf)
    ...     push = torch.where(negative, 50 * (similarity - 0.5), -torch.inf)
    ...     zero = similarity.new_zeros(len(similarity), 1)
    ...     lse = [torch.cat([zero, z], 1).logsumexp(1) for z in (pull, push)]
    ...     return lse[0] / 2 + lse[1] / 50
    >>> loss = streamed_loss(row_loss, embeddings, labels)
    """
    check_choice("reduction", reduction, REDUCTIONS)
    check_rule("mining", mining, Mining)
    spec = MultiSimilaritySpec(max_positive_similarity=max_positive_similarity, normalize=normalize)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    with torch.autocast(embeddings.device.type, enabled=False):
        sides = Sides(*sides_of(pairs), spec)

        def panel(x: Tensor, r: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
            some = sides.panel(slice(start, stop), x, r)
            return row_losses(row_loss, mining, some.sim, some.positive, some.negative)

        n = len(sides.x)
        width = max(1, len(sides.r) * sides.r.element_size())
        height = max(1, options.panel_bytes // TEMPORARIES // width)
        losses, kept = [], []
        for start in range(0, max(n, 1), height):
            # Without the state of the random generators: reading it would wait for a GPU.
            loss, count = checkpoint(
                panel,
                sides.x,
                sides.r,
                start,
                min(n, start + height),
                use_reentrant=False,
                preserve_rng_state=False,
            )
            losses.append(loss)
            kept.append(count)
        rows = reduce_rows(torch.cat(losses), torch.cat(kept), reduction)
    return in_public_dtype(rows, embeddings)
