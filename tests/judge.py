"""Statistics, losses and gradients of the MS loss by any backend, held to their budgets."""

import functools

import rounding
import torch
from cases import assert_within_budget, incoming_gradient

import ms_kernels
from ms_kernels import reference


@functools.lru_cache(maxsize=4)
def exact_forward(batch, spec):
    """Of the statistics, and by reduction of the loss."""
    x, y, r, z = batch
    sides = x.double(), y, None if r is None else r.double(), z
    floors = rounding.of_spec(batch, spec)
    exact = reference.row_statistics(*sides, **vars(spec))
    losses = {}
    for reduction in ("none", "mean", "sum", "mean_valid"):
        loss = reference.multi_similarity_loss(*sides, reduction=reduction, **vars(spec))
        losses[reduction] = loss, floors.loss(reduction)
    return exact, floors.statistics(exact), losses


def check_statistics(got, exact, floors):
    for k, floor in enumerate(floors):
        assert_within_budget(got[k], None, exact[k], floor)
    assert torch.equal(got.pos_kept, exact.pos_kept)
    assert torch.equal(got.neg_kept, exact.neg_kept)


def check_forward(batch, spec, dtype, backend):
    exact, floors, losses = exact_forward(batch, spec)
    got = ms_kernels.row_statistics(*batch, backend=backend, **vars(spec))
    check_statistics(got, exact, floors)

    wide = torch.float64 if dtype == torch.float64 else torch.float32
    for reduction, (exact_loss, floor) in losses.items():
        loss = ms_kernels.multi_similarity_loss(
            *batch, reduction=reduction, backend=backend, **vars(spec)
        )
        assert loss.dtype == (wide if reduction == "sum" else dtype)
        assert_within_budget(loss, None, exact_loss, floor)


def gradients(function, x, y, r, z, reduction, options):
    leaves = [v.clone().requires_grad_() for v in (x, r) if v is not None]
    loss = function(
        leaves[0], y, leaves[1] if r is not None else None, z, reduction=reduction, **options
    )
    loss.backward(incoming_gradient(loss.numel()).view(loss.shape).to(loss))
    return [leaf.grad for leaf in leaves]


def floors_of(batch, spec, reduction, backend=""):
    """Of what `gradients` gives."""
    count = len(batch.x) if reduction == "none" else 1
    incoming = incoming_gradient(count).to(batch.x.device)
    return rounding.of_spec(batch, spec, backend).gradients(reduction, incoming)


@functools.lru_cache(maxsize=8)
def exact_backward(batch, spec, reduction, backend):
    x, y, r, z = batch
    sides = x.double(), y, None if r is None else r.double(), z
    exact = gradients(reference.multi_similarity_loss, *sides, reduction, vars(spec))
    return exact, floors_of(batch, spec, reduction, backend)


def check_backward(batch, spec, dtype, backend, reduction):
    chosen = {**vars(spec), "backend": backend}
    got = gradients(ms_kernels.multi_similarity_loss, *batch, reduction, chosen)
    own = backend if backend in rounding.HALF_WEIGHTS else ""
    for g, e, floor in zip(got, *exact_backward(batch, spec, reduction, own), strict=True):
        assert g.dtype == dtype
        assert_within_budget(g, None, e, floor)


def check_counted(batch, spec, dtype, backend):
    """Statistics, mean and its gradients of a step that asks for all of them."""
    exact, floors, losses = exact_forward(batch, spec)
    found = []

    def step(*sides, **options):
        loss, stats = ms_kernels.multi_similarity_loss(*sides, return_statistics=True, **options)
        found.extend((loss.detach(), stats))
        return loss

    got = gradients(step, *batch, "mean", {**vars(spec), "backend": backend})
    loss, stats = found
    check_statistics(stats, exact, floors)
    assert loss.dtype == dtype
    assert_within_budget(loss, None, *losses["mean"])
    own = backend if backend in rounding.HALF_WEIGHTS else ""
    for g, e, floor in zip(got, *exact_backward(batch, spec, "mean", own), strict=True):
        assert g.dtype == dtype
        assert_within_budget(g, None, e, floor)
