"""Autograd functions over the ops."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.checks import Pairs, savable
from ms_kernels.engine import ops, reduced
from ms_kernels.engine.plans import Plans
from ms_kernels.engine.refusals import (
    WAY_OUT,
    below_autograd,
    is_batch,
    refuse_second_derivative,
    refuse_transforms,
)
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Contrastive, Triplet
from ms_kernels.settings import float32_products

# Triplets are compared once more in any case. Of hinges few are active, and a scan lists them for
# the gradient, which with finished statistics would look at every pair.
ANEW = (Contrastive, Triplet)


PLAIN_TENSORS = (Tensor, torch.nn.Parameter)


class ReducedLoss(torch.autograd.Function):
    """Sum, mean or mean_valid: the gradient comes out of the forward pass, backward scales it."""

    @staticmethod
    def forward(
        ctx: Any,
        embeddings: Tensor,
        ref_emb: Tensor | None,
        call: "Call",
    ) -> Tensor:
        loss, dx, dr = _reduced(call, *ctx.needs_input_grad[:2])
        ctx.dtype = embeddings.dtype
        ctx.save_for_backward(dx, dr)
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("ms_kernels")
        dx, dr = ctx.saved_tensors
        need_dx, need_dr = ctx.needs_input_grad[:2]
        return (
            _scaled(dx, dloss, ctx.dtype) if need_dx else None,
            _scaled(dr, dloss, ctx.dtype) if need_dr else None,
            None,
        )


class Call(NamedTuple):
    """One argument to autograd, which looks at each."""

    pairs: Pairs
    reduction: str
    wide: bool
    spec: PairSpec
    backend: str
    plans: Plans | None


def _reduced(
    call: Call, need_dx: bool, need_dr: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss and gradients through the op; where nobody is there to see it, by what it runs: the
    dispatcher takes as long as the kernels of a small batch."""
    pairs, reduction, wide, spec, backend, plans = call
    seen = torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack() > 0
    # Plans are of tensors that were looked at.
    seen = seen or (plans is None and any(t is not None and means_more(t) for t in pairs))
    how = reduction, wide, need_dx, need_dr
    with below_autograd():
        if not seen:
            return reduced.reduce_pairs(pairs, *how, spec, backend, plans)
        loss, dx, dr = ops.reduced_loss(*pairs, *how, spec.pack(), backend)
    return loss, dx, dr


def means_more(tensor: Tensor) -> bool:
    """Than its memory says: the dispatcher resolves a view that negates, and zeros without any."""
    return type(tensor) not in PLAIN_TENSORS or tensor.is_neg() or tensor._is_zerotensor()


def _scaled(gradient: Tensor, dloss: Tensor, dtype: torch.dtype) -> Tensor:
    """In one launch: a product that is cast as it is written."""
    if gradient.dtype == dtype or torch.compiler.is_compiling() or is_batch(dloss):
        return (gradient * dloss).to(dtype)
    return torch.mul(gradient, dloss, out=torch.empty_like(gradient, dtype=dtype))


def is_wide(embeddings: Tensor, reduction: str) -> bool:
    """Whether a loss stays in the compute dtype: under autocast, and sums, which float16 may not
    hold."""
    return reduction == "sum" or torch.is_autocast_enabled(embeddings.device.type)


def in_public_dtype(loss: Tensor, embeddings: Tensor, reduction: str) -> Tensor:
    """That of the embeddings, or wide."""
    if loss.dtype == embeddings.dtype or is_wide(embeddings, reduction):
        return loss
    return loss.to(embeddings.dtype)


def constants_of(ctx: Any, *outputs: Tensor) -> None:
    """Outputs without a derivative, for whose gradients no zeros are made."""
    ctx.mark_non_differentiable(*outputs)
    ctx.set_materialize_grads(False)


def keep(ctx: Any, *tensors: Tensor | None) -> None:
    """For backward."""
    ctx.save_for_backward(*map(savable, tensors))


def differentiable_once(
    pairs: Pairs, name: str = "ms_kernels", way_out: str = WAY_OUT
) -> tuple[Tensor, Tensor | None]:
    """Both sides, after a refusal of every derivative but the first of reverse mode.

    In a graph they are aliases that refuse a second one: for a derivative to go through, while the
    pairs themselves are what is computed with.
    """
    x, r = pairs.embeddings, pairs.ref_emb
    if not torch.compiler.is_compiling():
        refuse_transforms(name, way_out, embeddings=x, ref_emb=r)
        return x, r
    # A transform hides what requires a gradient, and looks at what is called, used or not.
    once = ops.differentiable_once(x, pairs.labels)
    x = once if x.requires_grad else x
    if r is not None:
        once = ops.differentiable_once(r, pairs.ref_labels)
        r = once if r.requires_grad else r
    return x, r


def fused_loss(
    pairs: Pairs,
    spec: PairSpec,
    reduction: str,
    backend: str,
    plans: Plans | None = None,
) -> Tensor:
    """The reduced loss through the ops, in the dtype of the embeddings, or wide. plans: see
    reduced.reduce_pairs."""
    x, r = differentiable_once(pairs)
    wide = is_wide(x, reduction)
    wanted = torch.is_grad_enabled() and (x.requires_grad or (r is not None and r.requires_grad))
    call = Call(pairs, reduction, wide, spec, backend, plans)
    if reduction != "none":
        if wanted:
            return ReducedLoss.apply(x, r, call)  # type: ignore[no-any-return, no-untyped-call]
        return _reduced(call, False, False)[0]
    if wanted:
        return in_public_dtype(row_losses_of(x, r, pairs, spec, backend)[0], x, reduction)
    with below_autograd():
        loss = ops.loss_and_gradient(*pairs, False, False, spec.pack(), backend)[0]
    return in_public_dtype(loss, x, reduction)


def row_losses_of(
    x: Tensor, r: Tensor | None, pairs: Pairs, spec: PairSpec, backend: str
) -> tuple[Tensor, ...]:
    anew = isinstance(spec.weighting, ANEW)
    found: tuple[Tensor, ...]
    found = RowLoss.apply(x, r, pairs, spec.pack(), backend, anew)  # type: ignore[no-untyped-call]
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
        pairs: Pairs,
        packed: list[float],
        backend: str,
        anew: bool,
    ) -> tuple[Tensor, ...]:
        with below_autograd():
            stats = ops.row_statistics(*pairs, packed, backend)
            loss: Tensor = ops.row_loss_of(list(stats), embeddings, ref_emb, packed, backend)
        constants_of(ctx, *stats)
        keep(ctx, *pairs, *(() if anew else stats))
        ctx.packed, ctx.backend, ctx.precision = packed, backend, precision_now()
        ctx.anew = anew
        return loss, *stats

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("ms_kernels")
        if dloss is None:
            return None, None, None, None, None, None
        saved = ctx.saved_tensors  # once: a checkpoint computes them for one look
        # Several incoming gradients go without the statistics too: PyTorch calls an op for each of
        # them, but none that takes a list.
        stats = () if ctx.anew or is_batch(dloss) else saved[6:]
        need_dx, need_dr, *_ = ctx.needs_input_grad
        with products_of(ctx.precision), below_autograd():
            found = gradients(
                Pairs(*saved[:6]), stats, dloss, need_dx, need_dr, ctx.packed, ctx.backend
            )
        dx, dr = (None if d is None else d.to(saved[0].dtype) for d in found)
        return dx, dr, None, None, None, None


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
    options = packed, backend
    dx: Tensor | None = None
    dr: Tensor | None = None
    if not (need_dx or need_dr):
        return dx, dr
    if not stats:
        _, _, dx, dr = ops.loss_and_gradient(*pairs, need_dx, need_dr, *options, dloss)
        return dx if need_dx else None, dr if need_dr else None
    term = [*stats, dloss]
    none: list[Tensor] = []
    if need_dx:
        both = term if r is None else none
        dx = ops.embedding_gradient(*pairs, term, both, *options)
    if need_dr:
        dr = ops.embedding_gradient(r, ref_labels, ref_ids, x, labels, ids, none, term, *options)
    return dx, dr


def precision_now() -> str | None:
    """How torch takes float32 products now; None in a graph, which does not see it."""
    return None if torch.compiler.is_compiling() else float32_products()


def products_of(precision: str | None) -> contextlib.AbstractContextManager[None]:
    """As in the forward pass: other products would mine other pairs than the statistics are of."""
    if precision is None or torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return _set_precision(precision)


@contextlib.contextmanager
def _set_precision(precision: str) -> Iterator[None]:
    before = float32_products()
    if precision == before:
        yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
