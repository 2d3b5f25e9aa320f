"""The public losses as functions."""

from typing import Literal, TypedDict, overload

from torch import Tensor
from typing_extensions import Required, Unpack

from ms_kernels.api.hints import names_the_way
from ms_kernels.api.road import loss_and_statistics
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.made import multi_similarity_rules
from ms_kernels.rules.mining import NO_MINING, Mining, MultiSimilarityMining
from ms_kernels.rules.sums import Option
from ms_kernels.rules.weighting import MultiSimilarity, Weighting


class Options(TypedDict, total=False):
    """What both functions take by keyword."""

    ids: Tensor | None
    ref_ids: Tensor | None
    max_positive_similarity: float | None
    normalize: bool
    distance: str | None
    reduction: str
    backend: str
    ignore_label: int | None
    anchor_mask: Tensor | None
    sample_weight: Tensor | None


class RuleOptions(Options, total=False):
    weighting: Required[Weighting]
    mining: Mining


class MultiSimilarityOptions(Options, total=False):
    alpha: Option
    beta: Option
    base: Option
    epsilon: float | None


@overload
def pair_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    return_statistics: Literal[True],
    **options: Unpack[RuleOptions],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def pair_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    return_statistics: Literal[False] = False,
    **options: Unpack[RuleOptions],
) -> Tensor: ...


@names_the_way
def pair_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    weighting: Weighting,
    mining: Mining = NO_MINING,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    distance: str | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    ignore_label: int | None = None,
    anchor_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    return_statistics: bool = False,
) -> Tensor | tuple[Tensor, RowStatistics]:
    """A pair loss = which pairs are kept x how a kept pair is weighted.

    Args:
        weighting: a rule of `ms_kernels.rules.weighting`, whose docstring has its formula;
            Histogram, whose loss is of the batch (reduction "mean" and no distance); or your own, a
            subclass of Weighting.
        mining: a rule of `ms_kernels.rules.mining`, whose docstring says what it keeps; or your
            own, a subclass of Mining. The gradient holds kept pairs fixed. Default: all are kept.
        backend: rules of this package run on every backend of `backends()`, but "cpu" refuses a
            Circle whose gamma * m**2 is above 70. Rules of your own are streamed. "reference" is
            dense. Default: the fastest.
        The rest as in `multi_similarity_loss`.

    Returns:
        The reduced loss; an anchor without a kept pair costs 0 and has no gradient.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.

    >>> pair_loss(x, y, weighting=BinomialDeviance(), mining=MultiSimilarityMining())
    """
    loss, statistics = loss_and_statistics(
        (embeddings, labels, ref_emb, ref_labels, ids, ref_ids),
        (weighting, mining),
        (max_positive_similarity, normalize, distance, reduction, backend),
        (ignore_label, anchor_mask, sample_weight),
        return_statistics,
    )
    return loss if statistics is None else (loss, statistics)


@overload
def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    return_statistics: Literal[True],
    **options: Unpack[MultiSimilarityOptions],
) -> tuple[Tensor, RowStatistics]: ...


@overload
def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    return_statistics: Literal[False] = False,
    **options: Unpack[MultiSimilarityOptions],
) -> Tensor: ...


@names_the_way
def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    alpha: Option = MultiSimilarity.alpha,
    beta: Option = MultiSimilarity.beta,
    base: Option = MultiSimilarity.base,
    epsilon: float | None = MultiSimilarityMining.epsilon,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    distance: str | None = None,
    reduction: str = "mean",
    backend: str = "auto",
    ignore_label: int | None = None,
    anchor_mask: Tensor | None = None,
    sample_weight: Tensor | None = None,
    return_statistics: bool = False,
) -> Tensor | tuple[Tensor, RowStatistics]:
    """Multi-Similarity loss of a batch, without storing the N x M similarities.

    For unit rows and the pairs kept by mining, anchor i costs
        log(1 + sum_pos exp(-alpha (S_ij - base))) / alpha
      + log(1 + sum_neg exp( beta (S_ij - base))) / beta,
    which is, for one anchor with similarities s to its kept pairs,
        softplus(logsumexp(-alpha * (s_pos - base))) / alpha
        + softplus(logsumexp(beta * (s_neg - base))) / beta
    Mining keeps negatives with S > hardest positive - epsilon and positives with
    S < hardest negative + epsilon, both strictly; the gradient holds the kept pairs fixed.

    Args:
        embeddings: (N, D) float16, bfloat16, float32 or float64. Half is computed in float32.
        labels: (N,) of any integer dtype; only equality counts. Or (N, K) bool, the labels that
            each row has: a pair that shares one is positive (streamed, whatever the device).
        ref_emb, ref_labels: (M, D) and (M,) candidates on the same device, e.g. a memory bank; of
            the same dtype, or, without a gradient, of any but float64. Default: the batch itself,
            without the pairs i = i; the same if they are the very objects embeddings and labels.
        ids, ref_ids: (N,) and (M,) integers; a pair of equal ids is the same sample, never a pair,
            and `ms_kernels.IGNORED` is the id of a sample that is in no pair.
        alpha, beta: scale of positive and negative similarities, 1e-30 to 1e30. Defaults 2, 50.
        base: similarity at which an exponent is 0, -1e30 to 1e30. Default 0.5.
        epsilon: mining slack in units of similarity. Default 0.1; None keeps every pair.
        max_positive_similarity: positives at or above it are no pairs. Default None: all are.
        normalize: divide rows by their L2 norm. A row of norm under 1e-12, such as one of zeros,
            has no direction: it is divided by 1e-12 and its gradient is 0. Default True.
        distance: what S is of two rows: None, their product; "euclidean", -|x - r|;
            "squared_euclidean", -|x - r|^2. Margins and base are then on that scale, so mostly
            below 0. Equal rows have no gradient. "cpu" and "panels" sum differences, exact near
            together and far from 0; "cuda" and "triton" take products of float32 rows around their
            middle, good unless rows lie in clusters far from each other. Default None.
        reduction: "mean" over all N anchors, "sum", "none" for (N,), "mean_valid" over the anchors
            that keep a pair.
        backend: "auto", or a name of `backends()`; an explicit one never falls back to another.
        ignore_label: rows of this label, such as -1, are in no pair and do not count as anchors;
            what they hold is not looked at. Default None: every label is one.
        anchor_mask: (N,) bool; False are candidates that are no anchors. Default: all are anchors.
        sample_weight: (N,) numbers by which the losses of anchors count; it may learn. "mean" and
            "mean_valid" divide by the sum of those that are counted. Default: 1 each.
        return_statistics: return (loss, `RowStatistics`) instead: hardest pairs and numbers of kept
            pairs, from which the loss and its gradient then follow. They are constants and stay on
            the device.

    Returns:
        The loss in the embeddings' dtype; of half embeddings in float32 under autocast and with
        reduction "sum", which float16 may not hold. Differentiable in embeddings and ref_emb. An
        anchor without a kept pair costs 0 and has no gradient. A similarity that is not finite
        makes its anchor's loss NaN; an exponent that the dtype cannot hold, as raw rows of great
        norm can have, makes it inf, without a gradient that means anything.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.
        RuntimeError: on a second or a forward-mode derivative and in transforms of torch.func,
            which only backend="reference" has, also in compiled graphs; in torch.jit.trace.

    Source: Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019, equation 15.
    """
    loss, statistics = loss_and_statistics(
        (embeddings, labels, ref_emb, ref_labels, ids, ref_ids),
        multi_similarity_rules(alpha, beta, base, epsilon),
        (max_positive_similarity, normalize, distance, reduction, backend),
        (ignore_label, anchor_mask, sample_weight),
        return_statistics,
    )
    return loss if statistics is None else (loss, statistics)
