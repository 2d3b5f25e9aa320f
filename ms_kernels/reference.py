"""The Multi-Similarity loss in dense PyTorch: the oracle that judges every kernel.

It stores the N x M similarity matrix, of distances all N x M x D differences, and is differentiable
as often as you like.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize as divided_by_norm
from torch.nn.functional import softplus

REDUCTIONS = ("mean", "sum", "none", "mean_valid")
# A row of smaller norm has no direction: it is divided by this, and its gradient is 0.
NORM_FLOOR = 1e-12
# The id of a sample that is in no pair, whatever the other's is.
IGNORED = -(2**63)
# Its own, so that it takes nothing from the package that it judges.
ALPHA, BETA, BASE, EPSILON = 2.0, 50.0, 0.5, 0.1


class RowStatistics(NamedTuple):
    """Seven numbers for each anchor, each of shape (N,).

    hardest_positive: least similarity to a positive, +inf without one.
    hardest_negative: greatest similarity to a negative, -inf without one, unless the mining rule
        bounds its negatives by another: its docstring says by which.
    pos_sum, neg_sum: what the weighting rule sums over kept pairs of a kind. Its `log_sums` says of
        each whether it is a log-sum-exp, -inf without a pair, or a plain sum, 0 without one.
    pos_kept, neg_kept: number of kept pairs; 0 of an anchor with a similarity that is not finite,
        whose other numbers are NaN.
    pos_moment: one number more of a rule whose docstring has one, such as another sum over kept
        positives; else 0.
    """

    hardest_positive: Tensor
    hardest_negative: Tensor
    pos_sum: Tensor
    neg_sum: Tensor
    pos_kept: Tensor
    neg_kept: Tensor
    pos_moment: Tensor

    @property
    def active(self) -> Tensor:
        """(N,) bool: anchors that keep a pair."""
        return self.pos_kept + self.neg_kept > 0

    @property
    def pos_lse(self) -> Tensor:
        """pos_sum by its name in the Multi-Similarity loss, log sum exp(-alpha (S - base)); it is
        what pos_sum is of other rules, which need not be a log-sum-exp."""
        return self.pos_sum

    @property
    def neg_lse(self) -> Tensor:
        """neg_sum by its name in the Multi-Similarity loss, log sum exp(beta (S - base)); it is
        what neg_sum is of other rules."""
        return self.neg_sum


def row_statistics(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    alpha: float = ALPHA,
    beta: float = BETA,
    base: float = BASE,
    epsilon: float | None = EPSILON,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    distance: str | None = None,
) -> RowStatistics:
    """Hardest pairs, log-sum-exps and kept counts of each anchor.

    embeddings (N, D), labels (N,); ref_emb (M, D), ref_labels (M,) default to the batch itself.
    ids (N,), ref_ids (M,): a pair of equal ids is a self pair and never counts, nor does any of a
    sample whose id is IGNORED.
    """
    sim, positive, negative = labelled_similarities(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        ids=ids,
        ref_ids=ref_ids,
        max_positive_similarity=max_positive_similarity,
        normalize=normalize,
        distance=distance,
    )

    least, most = hardest(sim, positive, negative)
    if epsilon is not None:  # strict, with the kept sets held fixed for the gradient
        positive = positive & (sim < (most + epsilon).detach())
        negative = negative & (sim > (least - epsilon).detach())

    # A non-finite similarity fails every comparison above: without this the loss would hide it.
    finite = sim.isfinite().all(1)
    poison = torch.where(finite, 0.0, math.nan).to(sim.dtype)
    return RowStatistics(
        least[:, 0] + poison,
        most[:, 0] + poison,
        masked_log_sum_exp(-alpha * (sim - base), positive) + poison,
        masked_log_sum_exp(beta * (sim - base), negative) + poison,
        positive.sum(1) * finite,
        negative.sum(1) * finite,
        torch.zeros_like(poison),
    )


def labelled_similarities(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    ids: Tensor | None,
    ref_ids: Tensor | None,
    max_positive_similarity: float | None,
    normalize: bool,
    distance: str | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """All similarities (N, M), and which of them are of positives and of negatives."""
    if ref_emb is None:
        ref_emb, ref_labels = embeddings, labels
        ids = torch.arange(len(embeddings), device=embeddings.device) if ids is None else ids
        ref_ids = ids
    if ref_labels is None:
        raise ValueError("ref_labels: expected a tensor because ref_emb was given, got None")
    if normalize:
        embeddings, ref_emb = unit_rows(embeddings), unit_rows(ref_emb)
    sim = similarities(embeddings, ref_emb, distance)

    same_label = shares_label(labels, ref_labels)
    negative = ~same_label
    positive = same_label
    if ids is not None and ref_ids is not None:
        ignored = (ids == IGNORED)[:, None] | (ref_ids == IGNORED)[None, :]
        self_pair = ids[:, None] == ref_ids[None, :]
        no_pair = ignored | self_pair
        positive, negative = positive & ~no_pair, negative & ~no_pair
    if max_positive_similarity is not None:
        positive = positive & (sim < max_positive_similarity)
    return sim, positive, negative


def similarities(x: Tensor, r: Tensor, distance: str | None) -> Tensor:
    """(N, M): x . r, or less the distance or its square, by N x M x D differences."""
    if distance is None:
        return x @ r.T
    squares = (x[:, None] - r[None]).square().sum(2)
    if distance == "squared_euclidean":
        return -squares
    # Equal rows, where the root has no slope, take a detour that has slope 0.
    equal = squares == 0
    return -torch.where(equal, 0, torch.where(equal, 1, squares).sqrt())


def shares_label(labels: Tensor, others: Tensor) -> Tensor:
    """(N, M) bool: of labels (N,) and (M,) whether they are equal, of sets of labels (N, K) and
    (M, K) whether they have one in common."""
    if labels.ndim == 1:
        return labels[:, None] == others[None, :]
    return labels.float() @ others.float().T > 0


def unit_rows(x: Tensor) -> Tensor:
    """Rows divided by their L2 norm, also where the squares would overflow.

    A norm under 1e-12 counts as 1e-12. The gradient of such a row is 0, or NaN where the incoming
    one is not finite.
    """
    x = x / row_scale(x)
    floored = is_floored(x.detach().norm(dim=1, keepdim=True))
    # The floored rows take a detour, so that no derivative of any order divides by their norm.
    unit = divided_by_norm(torch.where(floored, 1, x), dim=1)
    return torch.where(floored, x.detach() / NORM_FLOOR + 0 * x, unit)


def is_floored(norm: Tensor) -> Tensor:
    """Whether rows of these norms have no direction."""
    return (norm < NORM_FLOOR) | (norm == 0)  # of float16 the floor itself rounds to 0


def row_scale(x: Tensor) -> Tensor:
    """(rows, 1): 1 where the norm is finite, else the greatest element, as a constant."""
    x = x.detach()
    norm = x.norm(dim=1, keepdim=True)
    one = torch.ones_like(norm)
    if x.shape[1] == 0:
        return one
    return torch.where(norm.isfinite(), one, x.abs().amax(1, keepdim=True))


def hardest(similarity: Tensor, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
    """(rows, 1) least similarity to a positive, +inf without one; greatest to a negative, -inf."""
    # A column of infinities stands for the empty set: amin and amax need at least one entry.
    empty = similarity.new_full((len(similarity), 1), math.inf)
    least = torch.cat([similarity.masked_fill(~positive, math.inf), empty], 1).amin(1)
    most = torch.cat([similarity.masked_fill(~negative, -math.inf), -empty], 1).amax(1)
    return least[:, None], most[:, None]


def masked_log_sum_exp(exponents: Tensor, kept: Tensor) -> Tensor:
    """log of the sum of exp(exponents) over kept, per row; -inf, with zero gradient, if none is."""
    kept_any = kept.any(1)
    # Rows without a kept entry take a finite detour: the gradient of logsumexp at -inf is NaN.
    safe = exponents.masked_fill(~kept & kept_any[:, None], -math.inf)
    safe = safe.masked_fill(~kept_any[:, None], 0.0)
    if safe.shape[1] == 0:
        return safe.sum(1) - math.inf  # no candidates, yet connected to the graph
    return safe.logsumexp(1).masked_fill(~kept_any, -math.inf)


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    alpha: float = ALPHA,
    beta: float = BETA,
    base: float = BASE,
    epsilon: float | None = EPSILON,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    distance: str | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Multi-Similarity loss of a batch (Wang et al., CVPR 2019, equation 15).

    For S = embeddings @ ref_emb.T, or the negative distances of their rows ("euclidean" or
    "squared_euclidean"), and the pairs kept by mining, anchor i costs
        log(1 + sum_pos exp(-alpha (S - base))) / alpha
      + log(1 + sum_neg exp( beta (S - base))) / beta
    reduction: "mean" over all N anchors, "sum", "none" gives (N,), "mean_valid" divides by the
    number of anchors with a kept pair. An anchor without a kept pair costs 0.
    """
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction: expected one of {REDUCTIONS}, got {reduction!r}")
    stats = row_statistics(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        ids=ids,
        ref_ids=ref_ids,
        alpha=alpha,
        beta=beta,
        base=base,
        epsilon=epsilon,
        max_positive_similarity=max_positive_similarity,
        normalize=normalize,
        distance=distance,
    )
    loss = row_loss(stats, alpha, beta)
    if reduction == "none":
        return loss
    if reduction == "sum":
        return loss.sum()
    if reduction == "mean":
        return loss.sum() / max(len(loss), 1)
    return loss.sum() / count_valid(stats.pos_kept + stats.neg_kept)


def count_valid(kept: Tensor) -> Tensor:
    """Number of anchors with a kept pair, at least 1: what "mean_valid" divides by."""
    return (kept > 0).sum().clamp(min=1)


def row_loss(stats: RowStatistics, alpha: float, beta: float) -> Tensor:
    """Loss of each anchor, (N,)."""
    # Above its threshold softplus(z) is taken as z: exp(-40) is below the rounding of float64.
    return (
        softplus(stats.pos_lse, threshold=40) / alpha + softplus(stats.neg_lse, threshold=40) / beta
    )
