"""Losses of single anchors, and gradients from their statistics."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.engine import ops
from ms_kernels.engine.counted_pairs import ANEW
from ms_kernels.engine.refusals import (
    below_autograd,
    is_batch,
    refuse_batches,
    refuse_second_derivative,
)
from ms_kernels.engine.saved import constants_of, keep, precision_now, products_of
from ms_kernels.rules.spec import PairSpec


def row_losses_of(
    x: Tensor,
    r: Tensor | None,
    pairs: Pairs,
    spec: PairSpec,
    backend: str,
    option_values: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """Losses and statistics of the anchors. option_values: see `ops`."""
    anew = option_values is None and isinstance(spec.weighting, ANEW)
    found: tuple[Tensor, ...]
    found = RowLoss.apply(x, r, option_values, pairs, spec.pack(), backend, anew)  # type: ignore[no-untyped-call]
    return found


class RowLoss(torch.autograd.Function):
    """Loss of each anchor, and its statistics; the gradient waits for what each of them is worth.

    anew: the statistics are no help in backward: see `gradients`.
    """

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        option_values: Tensor | None,
        pairs: Pairs,
        packed: list[float],
        backend: str,
        anew: bool,
    ) -> tuple[Tensor, ...]:
        how = packed, backend, option_values
        with below_autograd():
            stats = ops.row_statistics(*pairs, *how)
            loss: Tensor = ops.row_loss_of(list(stats), embeddings, ref_emb, *how)
        constants_of(ctx, *stats)
        keep(ctx, option_values, *pairs, *(() if anew else stats))
        ctx.packed, ctx.backend, ctx.precision = packed, backend, precision_now()
        ctx.anew = anew
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("ms_kernels")
        if dloss is None:
            return None, None, None, None, None, None, None
        option_values, *saved = ctx.saved_tensors  # once: a checkpoint computes them for one look
        # Several incoming gradients go without the statistics too: PyTorch calls an op for each of
        # them, but none that takes a list.
        stats = () if ctx.anew or is_batch(dloss) else saved[6:]
        need_dx, need_dr, *_ = ctx.needs_input_grad
        how = need_dx, need_dr, ctx.packed, ctx.backend
        pairs, doptions = Pairs(*saved[:6]), None
        with products_of(ctx.precision), below_autograd():
            if option_values is None:
                dx, dr = gradients(pairs, stats, dloss, *how)
            else:
                dx, dr, doptions = learned_gradients(pairs, saved[6:], dloss, option_values, *how)
        dx, dr = (None if d is None else d.to(saved[0].dtype) for d in (dx, dr))
        return dx, dr, doptions, None, None, None, None


def gradients(
    pairs: Pairs,
    stats: Sequence[Tensor],
    dloss: Tensor,
    need_dx: bool,
    need_dr: bool,
    packed: list[float],
    backend: str,
) -> tuple[Tensor | None, Tensor | None]:
    """Of both sides, in the compute dtype, where the loss of each anchor is worth dloss. stats: of
    the anchors; none of rules that are better looked at anew, in one call for both sides."""
    x, labels, ids, r, ref_labels, ref_ids = pairs
    how = packed, backend
    dx: Tensor | None = None
    dr: Tensor | None = None
    if not (need_dx or need_dr):
        return dx, dr
    if not stats:
        _, _, dx, dr = ops.loss_and_gradient(*pairs, need_dx, need_dr, *how, dloss)
        return dx if need_dx else None, dr if need_dr else None
    term = [*stats, dloss]
    none: list[Tensor] = []
    if need_dx:
        both = term if r is None else none
        dx = ops.embedding_gradient(*pairs, term, both, *how)
    if need_dr:
        dr = ops.embedding_gradient(r, ref_labels, ref_ids, x, labels, ids, none, term, *how)
    return dx, dr


def learned_gradients(
    pairs: Pairs,
    stats: Sequence[Tensor],
    dloss: Tensor,
    option_values: Tensor,
    need_dx: bool,
    need_dr: bool,
    packed: list[float],
    backend: str,
) -> tuple[Tensor | None, Tensor | None, Tensor]:
    """The same, and of option_values that learn."""
    refuse_batches("ms_kernels", dloss)
    how = option_values, need_dx, need_dr, packed, backend
    dx, dr, doptions = ops.learned_gradient(*pairs, [*stats, dloss], *how)
    return dx if need_dx else None, dr if need_dr else None, doptions
