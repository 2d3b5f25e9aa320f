"""Losses of your own, streamed: any function of a panel of similarities, in O(panel * M) memory."""

from __future__ import annotations  # torch.compile of torch 2.6 traces no tuple[Tensor, Tensor]

from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ms_kernels.api.hints import names_the_way
from ms_kernels.backends.interface import Side
from ms_kernels.backends.plain.sides import Sides
from ms_kernels.backends.plain.sweep import (
    TEMPORARIES,
    RowFunction,
    by_autograd,
    row_losses,
    sweep,
)
from ms_kernels.checks import Pairs, check_choice, check_pairs, check_rule, savable_pairs
from ms_kernels.engine.autograd import differentiable_once, in_public_dtype
from ms_kernels.engine.reduction import reduce, reduce_rows
from ms_kernels.engine.refusals import (
    OWN_WAY_OUT,
    has_tangent,
    is_forward_mode,
    refuse_batches,
    refuse_second_derivative,
    refuse_tracing,
)
from ms_kernels.engine.saved import constants_of, keep
from ms_kernels.engine.sides import sides_of
from ms_kernels.reference import REDUCTIONS, count_valid
from ms_kernels.rules.made import options_of
from ms_kernels.rules.mining import NO_MINING, Mining
from ms_kernels.rules.spec import PairOptions

Given = tuple[RowFunction, Mining, PairOptions]


@names_the_way
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
    distance: str | None = None,
    reduction: str = "mean",
) -> Tensor:
    """A pair loss written in plain PyTorch, panel by panel: never all N x M similarities at once.

    Args:
        row_loss: row_loss(similarity, positive, negative) of some anchors: (rows, M) similarities
            and two (rows, M) masks of pairs that mining keeps, to a loss for each, (rows,). It is
            called again in the backward pass and must give the same then: no randomness. It must
            not write into the similarities. Entries in neither mask are the anchors themselves and
            what mining drops.
        mining: a mining rule. Default: every pair.
        The rest as in `multi_similarity_loss`; any device, and under torch.compile.

    Returns:
        The reduced loss, computed in float32 of half, in a dtype as of `multi_similarity_loss`;
        differentiable in embeddings and ref_emb. A similarity that is not finite makes its anchor's
        loss NaN.

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
    refuse_tracing("streamed_loss")
    shared = options_of(max_positive_similarity, normalize, distance)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids, one_dtype=False)
    return streamed(row_loss, pairs, mining, shared, reduction)


def streamed(
    row_loss: RowFunction, pairs: Pairs, mining: Mining, shared: PairOptions, reduction: str
) -> Tensor:
    """`streamed_loss` of checked arguments."""
    found = _streamed(row_loss, pairs, mining, shared, reduction)
    return in_public_dtype(found[0], pairs.embeddings, reduction)


def streamed_rows(
    row_loss: RowFunction, pairs: Pairs, mining: Mining, shared: PairOptions
) -> tuple[Tensor, Tensor]:
    """Loss of each anchor, in the compute dtype, and its number of kept pairs."""
    return _streamed(row_loss, pairs, mining, shared, "none")


def _streamed(
    row_loss: RowFunction, pairs: Pairs, mining: Mining, shared: PairOptions, reduction: str
) -> tuple[Tensor, Tensor]:
    given = (row_loss, mining, shared)
    if not callable(row_loss):
        raise TypeError(
            f"row_loss: expected a function row_loss(similarity, positive, negative), got "
            f"{row_loss!r}; a rule goes to pair_loss(weighting=...)"
        )
    x, r = differentiable_once(pairs, "streamed_loss", OWN_WAY_OUT)
    with torch.autocast(x.device.type, enabled=False):
        if torch.compiler.is_compiling() or _learns(pairs, *given):
            rows, kept = _checkpointed(pairs, *given)
            return reduce_rows(rows, kept, reduction), kept
        if not torch.is_grad_enabled():  # which a function of autograd does not see
            x, r = x.detach(), None if r is None else r.detach()
        return _Swept.apply(x, r, pairs, given, reduction)  # type: ignore[no-any-return, no-untyped-call]


class _Swept(torch.autograd.Function):
    """Losses and gradient in one sweep; single losses are swept again, with what they are worth."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        r: Tensor | None,
        pairs: Pairs,
        given: Given,
        reduction: str,
    ) -> tuple[Tensor, Tensor]:
        later = reduction == "none"
        row_loss, mining, shared = given
        dx_too, dr_too = (wanted and not later for wanted in ctx.needs_input_grad[:2])
        sides = sides_of(pairs)
        rows, kept, dx, dr = sweep(by_autograd(row_loss, mining), *sides, shared, dx_too, dr_too)
        valid = count_valid(kept) if reduction == "mean_valid" else None
        ctx.given, ctx.reduction, ctx.count = given, reduction, max(len(rows), 1)
        ctx.dtype = x.dtype
        keep(ctx, dx, dr, valid, *(pairs if later else ()))
        constants_of(ctx, kept)
        return rows if later else reduce(rows.sum(), reduction, ctx.count, valid), kept

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *rest: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("streamed_loss", OWN_WAY_OUT)
        if dloss is None:
            return None, None, None, None, None
        dx, dr, valid, *pairs = ctx.saved_tensors
        if ctx.reduction == "none":
            refuse_batches("streamed_loss", dloss, OWN_WAY_OUT)
            row_loss, mining, shared = ctx.given
            dx_too, dr_too = ctx.needs_input_grad[:2]
            sides = sides_of(Pairs(*pairs))
            weighed = by_autograd(row_loss, mining, dloss)
            _, _, dx, dr = sweep(weighed, *sides, shared, dx_too, dr_too)
        else:
            scale = reduce(dloss, ctx.reduction, ctx.count, valid)
            dx, dr = (None if d is None else d * scale for d in (dx, dr))
        dx, dr = (None if d is None else d.to(ctx.dtype) for d in (dx, dr))
        return dx, dr, None, None, None


def _learns(pairs: Pairs, row_loss: RowFunction, mining: Mining, shared: PairOptions) -> bool:
    """Whether row_loss depends on a tensor that asks for a derivative: a learnable temperature."""
    if not torch.is_grad_enabled() and not is_forward_mode():
        return False
    anchors, candidates = sides_of(pairs)
    one = Side(*(None if t is None else t[:1].detach() for t in anchors))  # type: ignore[arg-type]
    panel = next(Sides(one, candidates or anchors, shared).panels(), None)
    if panel is None:
        return False
    with torch.enable_grad():
        loss, _ = row_losses(row_loss, mining, panel.sim.detach(), panel.positive, panel.negative)
    return loss.requires_grad or has_tangent(loss)


def _checkpointed(
    pairs: Pairs,
    row_loss: RowFunction,
    mining: Mining,
    shared: PairOptions,
) -> tuple[Tensor, Tensor]:
    """As autograd sees it: what a compiled graph can trace, and what row_loss learns besides."""
    sides = Sides(*sides_of(savable_pairs(pairs)), shared)

    def panel(x: Tensor, r: Tensor, start: int, stop: int) -> tuple[Tensor, Tensor]:
        some = sides.panel(slice(start, stop), x, r)
        return row_losses(row_loss, mining, some.sim, some.positive, some.negative)

    n, height = len(sides.x), sides.height(TEMPORARIES)
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
    return torch.cat(losses), torch.cat(kept)
