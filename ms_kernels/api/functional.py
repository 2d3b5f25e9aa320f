"""Public functions: check the arguments, choose the route, reduce."""

import torch
from torch import Tensor

from ms_kernels import reference
from ms_kernels.api.histogram import Histogram, histogram_loss
from ms_kernels.api.streaming import streamed
from ms_kernels.backends import dispatch
from ms_kernels.backends.sweep import row_losses
from ms_kernels.checks import (
    MOST_OPTION,
    Pairs,
    check_choice,
    check_pairs,
    check_rule,
    savable_pairs,
)
from ms_kernels.engine import ops
from ms_kernels.engine.autograd import fused_loss, in_public_dtype, reduce_rows
from ms_kernels.engine.ops import compute_dtype
from ms_kernels.engine.refusals import constants, refuse_tracing
from ms_kernels.reference import REDUCTIONS, RowStatistics
from ms_kernels.rules.mining import NO_MINING, Mining, mining_of
from ms_kernels.rules.spec import NATIVE, MultiSimilaritySpec, PairOptions, PairSpec, Spec, spec_of
from ms_kernels.rules.weighting import MultiSimilarity, Triplet, Weighting, is_traced

# Candidates of an anchor's class, on average; docs/performance.md has the measurement.
CROWD = 1024
# Of kernels on a GPU, which take longer the more candidates a class could have. Chosen by
# reckoning: not measured on a GPU.
MOST_CANDIDATES = {"cuda": 4096, "triton": 2048}


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
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """A pair loss = which pairs are kept x how a kept pair is weighted.

    Args:
        weighting: a rule of `weighting_rules`, with its formula: MultiSimilarity, Contrastive,
            BinomialDeviance, BinLifted, LiftedStructure, Triplet, NPair, NTXent, SupCon, NCA,
            Circle; Histogram, whose loss is of the batch (reduction "mean" alone); or your own.
        mining: a rule of `mining_rules`: NoMining, MultiSimilarityMining, HardestMining,
            SemiHardMining, ThresholdMining; or your own. The gradient holds kept pairs fixed.
        backend: MultiSimilarity with NoMining or MultiSimilarityMining runs on every backend of
            `backends()`. Any other pair of rules of this package runs on "panels" (any device,
            O(panel * M) memory), "cpu", "cuda" and "triton", but circles of great gamma not on
            all of them. Rules of your own are streamed. "reference" is dense. Default: the fastest.
        The rest as in `multi_similarity_loss`.

    Returns:
        The reduced loss; an anchor without a kept pair costs 0 and has no gradient.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.

    >>> pair_loss(x, y, weighting=BinomialDeviance(), mining=MultiSimilarityMining())
    """
    check_rules(weighting, mining)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("backend", backend, dispatch.NAMES)
    if backend != "reference":
        refuse_tracing("ms_kernels")
    shared = PairOptions(max_positive_similarity=max_positive_similarity, normalize=normalize)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    if backend == "reference":
        pairs = savable_pairs(pairs)
    if isinstance(weighting, Histogram) and backend in ("auto", "panels", "reference"):
        return histogram_loss(weighting, pairs, mining, shared, reduction, backend == "reference")
    if backend == "reference":
        return _dense(weighting, pairs, mining, shared, reduction)
    spec = spec_of(weighting, mining, shared)
    known = known_by(weighting, mining, spec)
    chosen = _resolve(backend, embeddings.device.type, *known)
    if backend == "auto" and isinstance(weighting, Triplet) and _is_crowded(pairs, chosen):
        backend = chosen = "panels"
    # The op of a compiled graph runs where autograd, which panels need, is switched off.
    traced = chosen == "panels" and torch.compiler.is_compiling()
    if spec is None or (traced and isinstance(spec, PairSpec)):
        return streamed(weighting.row_loss, pairs, mining, shared, reduction)
    return in_public_dtype(fused_loss(pairs, spec, reduction, backend), embeddings)


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
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
        labels: (N,) of any integer dtype; only equality counts.
        ref_emb, ref_labels: (M, D) and (M,) candidates of the same dtype and device, e.g. a memory
            bank. Default: the batch itself, without the pairs i = i.
        ids, ref_ids: (N,) and (M,) integers; a pair of equal ids is the same sample, never a pair.
        alpha, beta: scale of positive and negative similarities, 1e-30 to 1e30. Defaults 2, 50.
        base: similarity at which an exponent is 0, -1e30 to 1e30. Default 0.5.
        epsilon: mining slack in units of similarity. Default 0.1; None keeps every pair.
        max_positive_similarity: positives at or above it are no pairs. Default None: all are.
        normalize: divide rows by their L2 norm. A row of norm under 1e-12, such as one of zeros,
            has no direction: it is divided by 1e-12 and its gradient is 0. Default True.
        reduction: "mean" over all N anchors, "sum", "none" for (N,), "mean_valid" over the anchors
            that keep a pair.
        backend: "auto", or a name of `backends()`; an explicit one never falls back to another.

    Returns:
        The loss in the embeddings' dtype, float32 under autocast; differentiable in embeddings
        and ref_emb. An anchor without a kept pair costs 0 and has no gradient. A similarity that
        is not finite makes its anchor's loss NaN; an exponent that the dtype cannot hold, as raw
        rows of great norm can have, makes it inf, without a gradient that means anything.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.
        RuntimeError: on a second or a forward-mode derivative and in transforms of torch.func,
            which only backend="reference" has, also in compiled graphs; in torch.jit.trace.

    Source: Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019, equation 15.
    """
    return pair_loss(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        weighting=MultiSimilarity(alpha, beta, base),
        mining=mining_of(epsilon),
        ids=ids,
        ref_ids=ref_ids,
        max_positive_similarity=max_positive_similarity,
        normalize=normalize,
        reduction=reduction,
        backend=backend,
    )


def check_rules(weighting: object, mining: object) -> None:
    check_rule("weighting", weighting, Weighting)
    check_rule("mining", mining, Mining)


def known_by(
    weighting: Weighting, mining: Mining, spec: Spec | None
) -> tuple[tuple[str, ...], str]:
    """The backends that know the rules, and the rules' names."""
    names = f"{type(weighting).__name__} with {type(mining).__name__}"
    if isinstance(spec, PairSpec) and not spec.fits_float32:
        names += f" and options that are not 0 or between {1 / MOST_OPTION:g} and {MOST_OPTION:g}"
    return ("panels",) if spec is None else spec.known_by, names


def check_backend(backend: str, known_by: tuple[str, ...], got: str) -> None:
    """An explicit one must know the rules."""
    if backend in dispatch.ALL and backend not in known_by:
        others = ", ".join(repr(name) for name in ("auto", *known_by, "reference"))
        known = ", ".join(sorted(rule.__name__ for rule in NATIVE))
        raise ValueError(
            f"backend: {backend!r} expected a rule that its kernels know ({known}, with any mining "
            f"rule of this package; Circle by limits of gamma, with unit rows), got {got}; use one "
            f"of {others}"
        )


def _resolve(backend: str, device: str, known_by: tuple[str, ...], got: str) -> str:
    check_backend(backend, known_by, got)
    return dispatch.resolve(backend, device, known_by=known_by)


# A compiled graph takes the answer as a constant. torch.compiler.assume_constant_result sets this
# too, but imports the compiler, which takes as long as the rest of torch.
_resolve._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _is_crowded(pairs: Pairs, backend: str) -> bool:
    """Whether to sort the positives, as panels do, is faster than to compare each negative with
    each of them."""
    candidates = pairs.labels if pairs.ref_labels is None else pairs.ref_labels
    if backend in MOST_CANDIDATES:  # which classes there are is not for the host to see
        return len(candidates) > MOST_CANDIDATES[backend]
    # What only stands for a tensor has no labels to look at.
    given = type(candidates) is Tensor and not is_traced()
    if backend != "cpu" or not given or len(candidates) <= CROWD or not len(pairs.labels):
        return False
    ascending = candidates.sort().values
    upto = torch.searchsorted(ascending, pairs.labels, right=True)
    of_anchors = upto - torch.searchsorted(ascending, pairs.labels)
    return float(of_anchors.double().mean()) > CROWD


def _dense(
    weighting: Weighting,
    pairs: Pairs,
    mining: Mining,
    shared: PairOptions,
    reduction: str,
) -> Tensor:
    with torch.autocast(pairs.embeddings.device.type, enabled=False):
        sim, positive, negative = reference.labelled_similarities(
            *_wide(pairs),
            ids=pairs.ids,
            ref_ids=pairs.ref_ids,
            max_positive_similarity=shared.max_positive_similarity,
            normalize=shared.normalize,
        )
        rows, kept = row_losses(weighting.row_loss, mining, sim, positive, negative)
        loss = reduce_rows(rows, kept, reduction)
    return in_public_dtype(loss, pairs.embeddings)


def _wide(pairs: Pairs) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """Both sides in the compute dtype, with their labels."""
    dtype = compute_dtype(pairs.embeddings)
    refs = None if pairs.ref_emb is None else pairs.ref_emb.to(dtype)
    return pairs.embeddings.to(dtype), pairs.labels, refs, pairs.ref_labels


def row_statistics(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    alpha: float = 2.0,
    beta: float = 50.0,
    base: float = 0.5,
    epsilon: float | None = 0.1,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    backend: str = "auto",
) -> RowStatistics:
    """Hardest pairs, log-sum-exps and kept counts of each anchor, (N,) each: constants.

    pos_lse is log sum exp(-alpha (S - base)) over the kept positives, neg_lse is
    log sum exp(beta (S - base)) over the kept negatives; -inf where none is kept. The loss of an
    anchor is softplus(pos_lse) / alpha + softplus(neg_lse) / beta. Statistics are float64 for
    float64 embeddings, else float32; counts are int64. Arguments and errors as in
    `multi_similarity_loss`.
    """
    spec = MultiSimilaritySpec(alpha, beta, base, epsilon, max_positive_similarity, normalize)
    check_choice("backend", backend, dispatch.NAMES)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    device = embeddings.device.type
    with constants(), torch.autocast(device, enabled=False):
        if _resolve(backend, device, spec.known_by, "") == "reference":
            return reference.row_statistics(
                *_wide(pairs), ids=pairs.ids, ref_ids=pairs.ref_ids, **spec.by_name()
            )
        return RowStatistics(*ops.row_statistics(*pairs, spec.pack(), backend))
