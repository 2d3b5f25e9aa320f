"""Losses of your own, streamed: any function of a panel of similarities, in O(panel * M) memory."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import normalize as unit_rows
from torch.utils.checkpoint import checkpoint

from ms_kernels.autograd import reduce
from ms_kernels.checks import check_choice, check_pairs
from ms_kernels.mining_rules import NO_MINING, Mining
from ms_kernels.reference import REDUCTIONS, count_valid
from ms_kernels.settings import options

RowFunction = Callable[[Tensor, Tensor, Tensor], Tensor]
# A panel and its derivative need some dozens of temporaries of its size.
TEMPORARIES = 16


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
    if not isinstance(mining, Mining):
        raise TypeError(f"mining: expected a rule such as NoMining(), got {mining!r}")
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    own_ids, other_ids = pairs.ids, pairs.ref_ids
    r, r_labels = embeddings, pairs.labels
    if pairs.ref_emb is not None and pairs.ref_labels is not None:
        r, r_labels = pairs.ref_emb, pairs.ref_labels
    else:
        if own_ids is None:
            own_ids = torch.arange(len(embeddings), device=embeddings.device)
        other_ids = own_ids
    with torch.autocast(embeddings.device.type, enabled=False):
        x = _computed(embeddings, normalize)
        refs = x if r is embeddings else _computed(r, normalize)

        def panel(x: Tensor, refs: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
            similarity = x[start:stop] @ refs.T
            positive = pairs.labels[start:stop, None] == r_labels[None, :]
            negative = ~positive
            if own_ids is not None and other_ids is not None:
                other = own_ids[start:stop, None] != other_ids[None, :]
                positive, negative = positive & other, negative & other
            with torch.no_grad():
                if max_positive_similarity is not None:
                    positive = positive & (similarity < max_positive_similarity)
                positive, negative = mining.keep(similarity, positive, negative)
                poison = torch.where(similarity.isfinite().all(1), 0.0, torch.nan)
            loss = row_loss(similarity, positive, negative)
            if loss.shape != similarity.shape[:1]:
                raise ValueError(
                    f"row_loss: expected a loss for each row, ({stop - start},), "
                    f"got {tuple(loss.shape)}"
                )
            return loss + poison.to(loss.dtype), positive.sum(1) + negative.sum(1)

        n = len(x)
        height = max(1, options.panel_bytes // TEMPORARIES // max(1, len(refs) * x.element_size()))
        losses, kept = [], []
        for start in range(0, max(n, 1), height):
            stop = min(n, start + height)
            # Without the state of the random generators: reading it would wait for a GPU.
            loss, count = checkpoint(
                panel, x, refs, start, stop, use_reentrant=False, preserve_rng_state=False
            )
            losses.append(loss)
            kept.append(count)
        rows = torch.cat(losses)
        if reduction != "none":
            valid = count_valid(torch.cat(kept)) if reduction == "mean_valid" else None
            rows = reduce(rows.sum(), reduction, max(n, 1), valid)
    if torch.is_autocast_enabled(embeddings.device.type):
        return rows
    return rows.to(embeddings.dtype)


def _computed(x: Tensor, normalize: bool) -> Tensor:
    x = x if x.dtype == torch.float64 else x.float()
    return unit_rows(x, dim=1) if normalize else x
