"""Public functions: check the arguments, choose the route, reduce."""

import contextlib

import torch
from torch import Tensor
from torch.autograd import forward_ad

from ms_kernels import dispatch, ops, reference
from ms_kernels.autograd import fused_loss, in_public_dtype
from ms_kernels.checks import check_choice, check_pairs
from ms_kernels.reference import REDUCTIONS, RowStatistics
from ms_kernels.spec import MultiSimilaritySpec


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
        alpha, beta: scale of positive and negative similarities, above 0. Defaults 2, 50.
        base: similarity at which an exponent is 0. Default 0.5.
        epsilon: mining slack in units of similarity. Default 0.1; None keeps every pair.
        max_positive_similarity: positives at or above it are no pairs. Default None: all are.
        normalize: divide rows by their L2 norm, floored at 1e-12. Default True.
        reduction: "mean" over all N anchors, "sum", "none" for (N,), "mean_valid" over the anchors
            that keep a pair.
        backend: "auto", or a name of `backends()`; an explicit one never falls back to another.

    Returns:
        The loss in the embeddings' dtype, float32 under autocast; differentiable in embeddings
        and ref_emb. An anchor without a kept pair costs 0 and has no gradient. A similarity that
        is not finite makes its anchor's loss NaN.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.
        RuntimeError: on a second or a forward-mode derivative and in transforms of torch.func,
            which only backend="reference" has.

    Source: Wang et al., Multi-Similarity Loss with General Pair Weighting, CVPR 2019, equation 15.
    """
    spec = MultiSimilaritySpec(alpha, beta, base, epsilon, max_positive_similarity, normalize)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("backend", backend, dispatch.NAMES)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    if not torch.compiler.is_compiling():  # an op checks too, but it is traced by its shapes only
        dispatch.resolve(backend, embeddings.device.type)
    if backend == "reference":
        wide, wide_ref, full_precision = _for_reference(embeddings, ref_emb)
        with full_precision:
            loss = reference.multi_similarity_loss(
                wide,
                pairs.labels,
                wide_ref,
                pairs.ref_labels,
                ids=pairs.ids,
                ref_ids=pairs.ref_ids,
                reduction=reduction,
                **spec.by_name(),
            )
        return in_public_dtype(loss, embeddings)
    refuse_transforms(embeddings=embeddings, ref_emb=ref_emb)
    return in_public_dtype(fused_loss(pairs, spec, reduction, backend), embeddings)


def _for_reference(
    x: Tensor, r: Tensor | None
) -> tuple[Tensor, Tensor | None, contextlib.AbstractContextManager[object]]:
    """Both sides in the compute dtype, which autocast must not narrow: it would mine with half."""
    device = x.device.type
    autocast = torch.is_autocast_enabled(device)
    scope = torch.autocast(device, enabled=False) if autocast else contextlib.nullcontext()
    dtype = ops.compute_dtype(x)
    return x.to(dtype), None if r is None else r.to(dtype), scope


def _tangent(x: Tensor) -> Tensor | None:
    return forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call, no-any-return]


def refuse_transforms(**sides: Tensor | None) -> None:
    if torch.compiler.is_compiling():
        return
    # Under vmap a tensor hides that it requires a gradient, which would be lost in silence.
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "ms_kernels: this backend has no forward-mode derivative and takes no part "
            "in transforms of torch.func (vmap, grad, jvp); use backend='reference'"
        )
    for name, x in sides.items():
        if x is not None and _tangent(x) is not None:
            raise RuntimeError(
                f"{name}: expected no tangent, got one: this backend has no forward-mode "
                "derivative; use backend='reference'"
            )


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
    """Hardest pairs, log-sum-exps and kept counts of each anchor, (N,) each; no gradient.

    pos_lse is log sum exp(-alpha (S - base)) over the kept positives, neg_lse is
    log sum exp(beta (S - base)) over the kept negatives; -inf where none is kept. The loss of an
    anchor is softplus(pos_lse) / alpha + softplus(neg_lse) / beta. Statistics are float64 for
    float64 embeddings, else float32; counts are int64. Arguments and errors as in
    `multi_similarity_loss`.
    """
    spec = MultiSimilaritySpec(alpha, beta, base, epsilon, max_positive_similarity, normalize)
    check_choice("backend", backend, dispatch.NAMES)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    with torch.no_grad():
        if dispatch.resolve(backend, embeddings.device.type) == "reference":
            wide, wide_ref, full_precision = _for_reference(embeddings, ref_emb)
            with full_precision:
                return reference.row_statistics(
                    wide,
                    pairs.labels,
                    wide_ref,
                    pairs.ref_labels,
                    ids=pairs.ids,
                    ref_ids=pairs.ref_ids,
                    **spec.by_name(),
                )
        return RowStatistics(*ops.row_statistics(*pairs, spec.pack(), backend))
