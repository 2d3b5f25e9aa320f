"""The reduced loss and its gradients, by the fastest that a backend has for them."""

from dataclasses import replace
from types import ModuleType

import torch
from torch import Tensor

from ms_kernels.backends import dispatch
from ms_kernels.backends.interface import Reduced, compute_dtype
from ms_kernels.checks import Pairs
from ms_kernels.engine.plans import Plans, plan_of
from ms_kernels.engine.sides import sides_for
from ms_kernels.reference import count_valid
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.sums import total_of


def reduce_pairs(
    pairs: Pairs,
    reduction: str,
    wide: bool,
    need_dx: bool,
    need_dr: bool,
    spec: PairSpec,
    backend: str,
    plans: Plans | None = None,
) -> Reduced:
    """What the op `reduced_loss` runs. plans: of earlier calls with tensors of these kinds."""
    embeddings = pairs.embeddings
    module = module_of(embeddings, pairs.ref_emb, spec, backend)
    sides = sides_for(module, pairs)
    dtype = compute_dtype(embeddings) if wide else embeddings.dtype
    if spec.two_sided and pairs.ref_emb is None:
        raise ValueError("two_sided: expected candidates, got None")
    if spec.two_sided and reduction not in ("mean", "sum"):
        raise ValueError(f"reduction: expected 'mean' or 'sum' of two sides, got {reduction!r}")
    if spec.two_sided and not (
        hasattr(module, "serves_two_sides") and module.serves_two_sides(spec)
    ):
        return _one_side_at_a_time(pairs, reduction, dtype, need_dx, need_dr, spec, backend)
    if plans is not None:
        plan = plan_of(plans, module, sides, spec, (reduction, dtype, need_dx, need_dr))
        if plan is not None:
            return plan(*sides)
    if hasattr(module, "reduced_loss_and_gradient"):
        found: Reduced | None
        found = module.reduced_loss_and_gradient(*sides, spec, reduction, dtype, need_dx, need_dr)
        if found is not None:
            return found
    rows, kept, dx, dr = module.loss_and_gradient(*sides, spec, need_dx, need_dr)
    loss = total_of(rows)
    if reduction != "sum":
        divisor = max(len(rows), 1) if reduction == "mean" else count_valid(kept)
        for tensor in (loss, dx, dr):
            if tensor is not None:
                tensor.div_(divisor)
    return loss.to(dtype), dx, dr


def _one_side_at_a_time(
    pairs: Pairs,
    reduction: str,
    dtype: torch.dtype,
    need_dx: bool,
    need_dr: bool,
    spec: PairSpec,
    backend: str,
) -> Reduced:
    x, labels, ids, r, ref_labels, ref_ids = pairs
    assert r is not None and ref_labels is not None
    one, other = replace(spec, two_sided=False), Pairs(r, ref_labels, ref_ids, x, labels, ids)
    loss, dx, dr = reduce_pairs(pairs, "sum", True, need_dx, need_dr, one, backend)
    back, dr_back, dx_back = reduce_pairs(other, "sum", True, need_dr, need_dx, one, backend)
    count = labels.shape[0] + ref_labels.shape[0]
    divisor = 1 if reduction == "sum" else max(count, 1)
    dx = None if dx is None or dx_back is None else (dx + dx_back) / divisor
    dr = None if dr is None or dr_back is None else (dr + dr_back) / divisor
    return ((loss + back) / divisor).to(dtype), dx, dr


def module_of(
    embeddings: Tensor, ref_emb: Tensor | None, spec: PairSpec, backend: str
) -> ModuleType:
    """The backend that serves them."""
    # The same when the sides change places: the gradient of the refs goes with the statistics.
    samples = embeddings.shape[0]
    if ref_emb is not None:
        samples = max(samples, ref_emb.shape[0])
    device, dtype = embeddings.device.type, embeddings.dtype
    return dispatch.MODULES[dispatch.resolve(backend, device, samples, spec, dtype)]
