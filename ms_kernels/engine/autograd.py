"""Autograd functions over the ops."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.engine import ops, reduced
from ms_kernels.engine.plans import Plans
from ms_kernels.engine.refusals import (
    WAY_OUT,
    below_autograd,
    is_batch,
    refuse_second_derivative,
    refuse_transforms,
)
from ms_kernels.engine.row_loss import row_losses_of
from ms_kernels.rules.spec import PairSpec

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
    # In a graph packed, for torch 2.6 has no spec of symbols.
    spec: PairSpec | list[float]
    backend: str
    plans: Plans | None


def _reduced(
    call: Call, need_dx: bool, need_dr: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Loss and gradients through the op; where nobody is there to see it, by what it runs: the
    dispatcher takes as long as the kernels of a small batch."""
    pairs, reduction, wide, spec, backend, plans = call
    seen = isinstance(spec, list) or torch._C._len_torch_dispatch_stack() > 0
    # Plans are of tensors that were looked at.
    seen = seen or (plans is None and any(t is not None and means_more(t) for t in pairs))
    how = reduction, wide, need_dx, need_dr
    with below_autograd():
        if isinstance(spec, PairSpec) and not seen:
            return reduced.reduce_pairs(pairs, *how, spec, backend, plans)
        packed = spec if isinstance(spec, list) else spec.pack()
        loss, dx, dr = ops.reduced_loss(*pairs, *how, packed, backend)
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
    told = spec.pack() if torch.compiler.is_compiling() else spec
    call = Call(pairs, reduction, wide, told, backend, plans)
    if reduction != "none":
        if wanted:
            return ReducedLoss.apply(x, r, call)  # type: ignore[no-any-return, no-untyped-call]
        return _reduced(call, False, False)[0]
    if wanted:
        return in_public_dtype(row_losses_of(x, r, pairs, spec, backend)[0], x, reduction)
    with below_autograd():
        loss = ops.loss_and_gradient(*pairs, False, False, spec.pack(), backend, None)[0]
    return in_public_dtype(loss, x, reduction)
