"""Public functions: check the arguments, choose the backend, attach the gradient."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import softplus

from ms_kernels import reference
from ms_kernels.backends import panels
from ms_kernels.backends.panels import Side, Term
from ms_kernels.reference import REDUCTIONS, RowStatistics
from ms_kernels.spec import MultiSimilaritySpec

BACKENDS = ("auto", "panels", "reference")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


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
    """Multi-Similarity loss (Wang et al., CVPR 2019, equation 15) without the N x M matrix.

    For S = embeddings @ ref_emb.T of unit rows and the pairs kept by mining, anchor i costs
        log(1 + sum_pos exp(-alpha (S - base))) / alpha
      + log(1 + sum_neg exp( beta (S - base))) / beta

    Args:
        embeddings: (N, D) float16, bfloat16, float32 or float64; half is computed in float32.
        labels: (N,) any integer dtype; only equality counts.
        ref_emb, ref_labels: (M, D), (M,) candidates; default the batch itself, without i = i.
        ids, ref_ids: (N,), (M,) integers; a pair of equal ids is never a pair.
        alpha, beta: scale of positive and negative similarities, above 0.
        base: similarity at which a pair's exponent is 0.
        epsilon: mining slack; negatives with S > hardest positive - epsilon and positives with
            S < hardest negative + epsilon are kept. None keeps all.
        max_positive_similarity: positives at or above it are dropped.
        normalize: divide rows by their L2 norm first.
        reduction: "mean" over N, "sum", "none" (N,), "mean_valid" over anchors with a kept pair.
        backend: "auto", "panels" (O(panel * M) memory) or "reference" (dense).

    Returns the loss in the embeddings' dtype. An anchor without a kept pair costs 0 and has no
    gradient; a NaN or infinite similarity gives NaN.

    Raises ValueError or TypeError, before any work, for an argument that does not fit.
    """
    spec = MultiSimilaritySpec(alpha, beta, base, epsilon, max_positive_similarity, normalize)
    _check_choice("reduction", reduction, REDUCTIONS)
    _check_choice("backend", backend, BACKENDS)
    anchors, candidates = _sides(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    if backend == "reference":
        return reference.multi_similarity_loss(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            reduction=reduction,
            **vars(spec),
        )
    row_loss, kept = _RowLoss.apply(embeddings, ref_emb, anchors, candidates, spec)  # type: ignore[no-untyped-call]
    if reduction == "none":
        loss = row_loss
    elif reduction == "sum":
        loss = row_loss.sum()
    elif reduction == "mean":
        loss = row_loss.sum() / max(len(row_loss), 1)
    else:
        loss = row_loss.sum() / (kept > 0).sum().clamp(min=1)
    autocast = torch.is_autocast_enabled(embeddings.device.type)
    result: Tensor = loss.to(
        torch.float32 if autocast and loss.dtype != torch.float64 else embeddings.dtype
    )
    return result


class _RowLoss(torch.autograd.Function):
    """Loss of each anchor in the compute dtype, and its number of kept pairs."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        anchors: Side,
        candidates: Side | None,
        spec: MultiSimilaritySpec,
    ) -> tuple[Tensor, Tensor]:
        # Autocast would round the similarities to half, and mining with them.
        with torch.autocast(embeddings.device.type, enabled=False):
            stats = panels.row_statistics(anchors, candidates, spec)
        ctx.save_for_backward(embeddings, ref_emb, *stats)
        ctx.anchors, ctx.candidates, ctx.spec = _bare(anchors), _bare(candidates), spec
        loss = softplus(stats.pos_lse) / spec.alpha + softplus(stats.neg_lse) / spec.beta
        kept = stats.pos_kept + stats.neg_kept
        ctx.mark_non_differentiable(kept)
        return loss, kept

    @staticmethod
    def backward(ctx: Any, dloss: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "multi_similarity_loss: this backend has no second derivative (create_graph=True); "
                "use backend='reference'"
            )
        embeddings, ref_emb, *stats = ctx.saved_tensors
        anchors = ctx.anchors._replace(embeddings=embeddings)
        term = Term(RowStatistics(*stats), dloss)
        dx: Tensor | None = None
        dr: Tensor | None = None
        if ref_emb is None:
            dx = panels.embedding_gradient(anchors, None, ctx.spec, term, term)
        else:
            candidates = ctx.candidates._replace(embeddings=ref_emb)
            if ctx.needs_input_grad[0]:
                dx = panels.embedding_gradient(anchors, candidates, ctx.spec, term, None)
            if ctx.needs_input_grad[1]:
                dr = panels.embedding_gradient(candidates, anchors, ctx.spec, None, term)
        return (
            None if dx is None else dx.to(embeddings.dtype),
            None if dr is None else dr.to(embeddings.dtype),
            None,
            None,
            None,
        )


def _bare(side: Side | None) -> Side | None:
    """The side without its embeddings, which autograd must save so that it sees in-place edits."""
    return None if side is None else side._replace(embeddings=side.embeddings.new_empty(0))


def _check_choice(name: str, got: str, wanted: tuple[str, ...]) -> None:
    if got not in wanted:
        raise ValueError(f"{name}: expected one of {', '.join(map(repr, wanted))}, got {got!r}")


def _sides(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ids: Tensor | None,
    ref_ids: Tensor | None,
) -> tuple[Side, Side | None]:
    anchors = _side("", "embeddings", embeddings, labels, ids)
    if (ref_emb is None) != (ref_labels is None):
        given, missing = ("ref_labels", "ref_emb") if ref_emb is None else ("ref_emb", "ref_labels")
        raise ValueError(f"{missing}: expected a tensor because {given} was given, got None")
    if ref_emb is None or ref_labels is None:
        if ref_ids is not None:
            raise ValueError("ref_ids: expected None without ref_emb, got a tensor")
        return anchors, None
    candidates = _side("ref_", "ref_emb", ref_emb, ref_labels, ref_ids)
    if ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_emb: expected shape (M, {embeddings.shape[1]}) to match embeddings "
            f"{tuple(embeddings.shape)}, got {tuple(ref_emb.shape)}"
        )
    for kind in ("dtype", "device"):
        if getattr(ref_emb, kind) != getattr(embeddings, kind):
            raise TypeError(
                f"ref_emb: expected {kind} {getattr(embeddings, kind)} to match embeddings, "
                f"got {getattr(ref_emb, kind)}"
            )
    if (ids is None) != (ref_ids is None):
        raise ValueError("ids, ref_ids: expected both or neither with ref_emb, got one")
    return anchors, candidates


def _side(prefix: str, name: str, x: Tensor, labels: Tensor, ids: Tensor | None) -> Side:
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(x).__name__}")
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name}: expected float16, bfloat16, float32 or float64, got {x.dtype}; use .float()"
        )
    if x.ndim != 2:
        raise ValueError(f"{name}: expected shape (N, D), got {tuple(x.shape)}")
    labels = _integers(f"{prefix}labels", labels, name, x)
    return Side(x, labels, None if ids is None else _integers(f"{prefix}ids", ids, name, x))


def _integers(name: str, got: Tensor, beside: str, x: Tensor) -> Tensor:
    if not isinstance(got, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(got).__name__}")
    if got.is_floating_point() or got.is_complex() or got.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer dtype, got {got.dtype}; use .long()")
    if got.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: expected shape ({x.shape[0]},) to match {beside} {tuple(x.shape)}, "
            f"got {tuple(got.shape)}"
        )
    if got.device != x.device:
        raise TypeError(f"{name}: expected device {x.device} to match {beside}, got {got.device}")
    return got.to(torch.int64)  # one-to-one, so equality survives even for uint64
