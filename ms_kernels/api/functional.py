"""Public functions: check the arguments, choose the route, reduce."""

import torch
from torch import Tensor

from ms_kernels import reference
from ms_kernels.api.histogram import Histogram, histogram_loss
from ms_kernels.api.streaming import streamed
from ms_kernels.backends import dispatch
from ms_kernels.backends.crowd import is_crowded
from ms_kernels.backends.interface import compute_dtype
from ms_kernels.backends.plain.sides import Panel
from ms_kernels.backends.plain.statistics import statistics_of
from ms_kernels.backends.plain.sweep import row_losses
from ms_kernels.checks import Pairs, check_choice, check_pairs, check_rule, savable_pairs
from ms_kernels.engine import ops
from ms_kernels.engine.autograd import fused_loss, in_public_dtype, reduce_rows
from ms_kernels.engine.refusals import constants, refuse_tracing
from ms_kernels.reference import REDUCTIONS, RowStatistics
from ms_kernels.rules.mining import NO_MINING, Mining, MultiSimilarityMining, mining_of
from ms_kernels.rules.spec import (
    PairOptions,
    PairSpec,
    multi_similarity_rules,
    options_of,
    spec_of,
)
from ms_kernels.rules.weighting import MultiSimilarity, Triplet, Weighting


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
        weighting: a rule of `ms_kernels.rules.weighting`, whose docstring has its formula;
            Histogram, whose loss is of the batch (reduction "mean" alone); or your own, a subclass
            of Weighting.
        mining: a rule of `ms_kernels.rules.mining`, whose docstring says what it keeps; or your
            own, a subclass of Mining. The gradient holds kept pairs fixed. Default: all are kept.
        backend: rules of this package run on every backend of `backends()`, but circles of great
            gamma not on all of them. Rules of your own are streamed. "reference" is dense.
            Default: the fastest.
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
    shared = options_of(max_positive_similarity, normalize)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    if backend == "reference":
        pairs = savable_pairs(pairs)
    if isinstance(weighting, Histogram) and backend in ("auto", "panels", "reference"):
        return histogram_loss(weighting, pairs, mining, shared, reduction, backend == "reference")
    if backend == "reference":
        return _dense(weighting, pairs, mining, shared, reduction)
    spec = spec_of(weighting, mining, shared)
    dispatch.check_known(backend, spec, weighting, mining)
    chosen = backend
    # The op chooses too: of most losses it is known here already where they go.
    if isinstance(weighting, Triplet) or backend != "auto" or torch.compiler.is_compiling():
        chosen = _chosen(backend, pairs, spec)
    if backend == "auto" and isinstance(weighting, Triplet) and chosen in dispatch.MODULES:
        if is_crowded(pairs, dispatch.MODULES[chosen].CROWD):
            backend = chosen = "panels"
    # The op of a compiled graph runs where autograd, which panels need, is switched off.
    traced = chosen == "panels" and torch.compiler.is_compiling()
    if spec is None or (traced and not spec.is_multi_similarity):
        return streamed(weighting.row_loss, pairs, mining, shared, reduction)
    return fused_loss(pairs, spec, reduction, backend)


def multi_similarity_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    alpha: float = MultiSimilarity.alpha,
    beta: float = MultiSimilarity.beta,
    base: float = MultiSimilarity.base,
    epsilon: float | None = MultiSimilarityMining.epsilon,
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
    weighting, mining = multi_similarity_rules(alpha, beta, base, epsilon)
    return pair_loss(
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        weighting=weighting,
        mining=mining,
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


def _chosen(backend: str, pairs: Pairs, spec: PairSpec | None) -> str:
    x, r = pairs.embeddings, pairs.ref_emb
    samples = len(x) if r is None else max(len(x), len(r))
    if not torch.compiler.is_compiling():
        return dispatch.resolve(backend, x.device.type, samples, spec, x.dtype)
    # Sizes and options may be symbols: of them nothing but comparisons is asked, and of sizes only
    # where the answer hangs on them.
    sized = spec is not None and isinstance(spec.weighting, Triplet)
    known = dispatch.takers(spec)
    return _chosen_in_graph(
        backend, x.device.type, dispatch.as_many(samples) if sized else 0, known, x.dtype
    )


def _chosen_in_graph(
    backend: str, device: str, samples: int, known: tuple[str, ...], dtype: torch.dtype
) -> str:
    if backend != "auto":
        return dispatch.resolve(backend, device, samples, dtype=dtype)
    here = dispatch.serving(dispatch.built(device), dispatch.DEFAULT, dtype)
    return dispatch.choose(device, here & frozenset(known), samples)


# A compiled graph takes the answer as a constant. torch.compiler.assume_constant_result sets this
# too, but imports the compiler, which takes as long as the rest of torch.
_chosen_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _dense(
    weighting: Weighting,
    pairs: Pairs,
    mining: Mining,
    shared: PairOptions,
    reduction: str,
) -> Tensor:
    with torch.autocast(pairs.embeddings.device.type, enabled=False):
        rows, kept = row_losses(weighting.row_loss, mining, *_similarities(pairs, shared))
        loss = reduce_rows(rows, kept, reduction)
    return in_public_dtype(loss, pairs.embeddings)


def _similarities(pairs: Pairs, shared: PairOptions) -> tuple[Tensor, Tensor, Tensor]:
    """All of them in the compute dtype, and which are of positives and of negatives."""
    dtype = compute_dtype(pairs.embeddings)
    return reference.labelled_similarities(
        pairs.embeddings.to(dtype),
        pairs.labels,
        None if pairs.ref_emb is None else pairs.ref_emb.to(dtype),
        pairs.ref_labels,
        ids=pairs.ids,
        ref_ids=pairs.ref_ids,
        max_positive_similarity=shared.max_positive_similarity,
        normalize=shared.normalize,
    )


def row_statistics(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    weighting: Weighting | None = None,
    mining: Mining | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    alpha: float = MultiSimilarity.alpha,
    beta: float = MultiSimilarity.beta,
    base: float = MultiSimilarity.base,
    epsilon: float | None = MultiSimilarityMining.epsilon,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    backend: str = "auto",
) -> RowStatistics:
    """Hardest pairs, sums over kept pairs and their numbers of each anchor, (N,) each: constants.

    Of the MS loss pos_sum is log sum exp(-alpha (S - base)) over the kept positives, neg_sum is
    log sum exp(beta (S - base)) over the kept negatives, -inf where none is kept; the loss of an
    anchor is softplus(pos_sum) / alpha + softplus(neg_sum) / beta. `RowStatistics` and the
    docstrings of the rules have the others.

    Args:
        weighting: a rule of this package. Default: MultiSimilarity(alpha, beta, base).
        mining: a rule of this package. Default: with `weighting` NoMining(), else that of epsilon.
        The rest as in `multi_similarity_loss`.

    Returns:
        `RowStatistics`, float64 for float64 embeddings, else float32; counts are int64.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.
    """
    usual = MultiSimilarity.alpha, MultiSimilarity.beta, MultiSimilarity.base
    slack_given = epsilon != MultiSimilarityMining.epsilon
    if weighting is not None and (slack_given or (alpha, beta, base) != usual):
        raise ValueError(
            "alpha, beta, base, epsilon: expected none because weighting was given, got "
            f"{alpha}, {beta}, {base}, {epsilon}; they are options of the rules"
        )
    if mining is not None and slack_given:
        raise ValueError(
            f"epsilon: expected none because mining was given, got {epsilon}; use "
            "mining=MultiSimilarityMining(epsilon)"
        )
    if mining is None:
        mining = mining_of(epsilon) if weighting is None else NO_MINING
    if weighting is None:
        weighting = MultiSimilarity(alpha, beta, base)
    check_rules(weighting, mining)
    check_choice("backend", backend, dispatch.NAMES)
    shared = PairOptions(max_positive_similarity=max_positive_similarity, normalize=normalize)
    spec = spec_of(weighting, mining, shared)
    if spec is None:
        raise ValueError(
            "weighting, mining: expected rules of this package, whose losses follow from sums, got "
            f"{dispatch.names_of(weighting, mining)}; pair_weights takes any rule"
        )
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    with constants(), torch.autocast(embeddings.device.type, enabled=False):
        dispatch.check_known(backend, spec, weighting, mining)
        if _chosen(backend, pairs, spec) == "reference":
            return statistics_of(Panel(slice(len(labels)), *_similarities(pairs, shared)), spec)
        return RowStatistics(*ops.row_statistics(*pairs, spec.pack(), backend))
