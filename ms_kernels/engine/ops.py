"""The two functions of a backend, and their fusion, as ops of PyTorch.

Ops are what torch.compile sees: it never traces into a backend. `spec` is PairSpec.pack(); backend
"auto" is resolved inside.
"""

import operator
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, library

from ms_kernels.backends import dispatch
from ms_kernels.backends.interface import Reduced, Side, Term, compute_dtype
from ms_kernels.checks import Pairs
from ms_kernels.engine.plans import Plans, plan_of
from ms_kernels.engine.reduction import total_of
from ms_kernels.engine.refusals import differentiate_once, refuse_derivatives
from ms_kernels.reference import RowStatistics, count_valid
from ms_kernels.rules.spec import PairSpec, unpack

_PAIRS = (
    "Tensor embeddings, Tensor labels, Tensor? ids, "
    "Tensor? ref_emb, Tensor? ref_labels, Tensor? ref_ids"
)
_library: Any = library.Library("ms_kernels", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    f"row_statistics({_PAIRS}, float[] spec, str backend) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# A term is the statistics and the gradient of the row losses, or empty.
_library.define(
    f"embedding_gradient({_PAIRS}, Tensor[] row_term, Tensor[] column_term, "
    "float[] spec, str backend) -> Tensor"
)
_library.define(
    f"loss_and_gradient({_PAIRS}, bool need_dx, bool need_dr, float[] spec, str backend, "
    "Tensor? dloss=None) -> (Tensor, Tensor, Tensor, Tensor)"
)
# The reduced loss, in the dtype of the embeddings unless `wide`, and its gradients, in the compute
# dtype.
_library.define(
    f"reduced_loss({_PAIRS}, str reduction, bool wide, bool need_dx, bool need_dr, float[] spec, "
    "str backend) -> (Tensor, Tensor, Tensor)"
)
# Ops of their own, so that no compiler chooses the order of a sum or another exponential.
_library.define(
    "row_loss(Tensor[] statistics, Tensor embeddings, Tensor? ref_emb, float[] spec, str backend) "
    "-> Tensor"
)
_library.define("differentiable_once(Tensor x, Tensor labels) -> Tensor")


def _row_statistics(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    spec: list[float],
    backend: str,
) -> tuple[Tensor, ...]:
    loss = unpack(spec)
    module = _module(backend, embeddings, ref_emb, loss)
    anchors, candidates = _sides(embeddings, labels, ids, ref_emb, ref_labels, ref_ids)
    return tuple(module.row_statistics(anchors, candidates, loss))


def _embedding_gradient(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    row_term: list[Tensor],
    column_term: list[Tensor],
    spec: list[float],
    backend: str,
) -> Tensor:
    loss = unpack(spec)
    module = _module(backend, embeddings, ref_emb, loss)
    rows, columns = _sides(embeddings, labels, ids, ref_emb, ref_labels, ref_ids)
    term = _term(row_term)
    # In self mode one term serves both sides.
    both = len(row_term) == len(column_term) and all(map(operator.is_, row_term, column_term))
    other = term if both else _term(column_term)
    dx: Tensor = module.embedding_gradient(rows, columns, loss, term, other)
    return dx


def _loss_and_gradient(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    need_dx: bool,
    need_dr: bool,
    spec: list[float],
    backend: str,
    dloss: Tensor | None = None,
) -> tuple[Tensor, ...]:
    loss = unpack(spec)
    module = _module(backend, embeddings, ref_emb, loss)
    anchors, candidates = _sides(embeddings, labels, ids, ref_emb, ref_labels, ref_ids)
    rows, kept, dx, dr = module.loss_and_gradient(
        anchors, candidates, loss, need_dx, need_dr, dloss
    )
    return rows, kept, _or_nothing(dx, rows), _or_nothing(dr, rows)


def _reduced_loss(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    reduction: str,
    wide: bool,
    need_dx: bool,
    need_dr: bool,
    spec: list[float],
    backend: str,
) -> tuple[Tensor, ...]:
    pairs = Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids)
    loss, dx, dr = reduce_pairs(pairs, reduction, wide, need_dx, need_dr, unpack(spec), backend)
    return loss, _or_nothing(dx, loss), _or_nothing(dr, loss)


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
    module, sides = _module(backend, embeddings, pairs.ref_emb, spec), _sides(*pairs)
    dtype = compute_dtype(embeddings) if wide else embeddings.dtype
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


def _or_nothing(tensor: Tensor | None, like: Tensor) -> Tensor:
    """An op must return tensors: an empty one for what was not asked."""
    return like.new_empty(0) if tensor is None else tensor


def _row_loss(
    statistics: list[Tensor],
    embeddings: Tensor,
    ref_emb: Tensor | None,
    spec: list[float],
    backend: str,
) -> Tensor:
    stats, loss = RowStatistics(*statistics), unpack(spec)
    module = _module(backend, embeddings, ref_emb, loss)
    if hasattr(module, "loss_of_statistics"):
        return module.loss_of_statistics(stats, loss)  # type: ignore[no-any-return]
    return loss.loss_of(stats)


def sides_of(pairs: Pairs) -> tuple[Side, Side | None]:
    """Anchors, and candidates unless they are the anchors."""
    return _sides(*pairs)


def _sides(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
) -> tuple[Side, Side | None]:
    anchors = Side(embeddings, labels, ids)
    if ref_emb is None or ref_labels is None:
        return anchors, None
    return anchors, Side(ref_emb, ref_labels, ref_ids)


def _module(backend: str, embeddings: Tensor, ref_emb: Tensor | None, spec: PairSpec) -> ModuleType:
    # The same when the sides change places: the gradient of the refs goes with the statistics.
    samples = embeddings.shape[0]
    if ref_emb is not None:
        samples = max(samples, ref_emb.shape[0])
    device, dtype = embeddings.device.type, embeddings.dtype
    return dispatch.MODULES[dispatch.resolve(backend, device, samples, spec, dtype)]


def _term(tensors: list[Tensor]) -> Term | None:
    if not tensors:
        return None
    *stats, dloss = tensors
    return Term(RowStatistics(*stats), dloss)


def _row_statistics_fake(embeddings: Tensor, *_: object) -> tuple[Tensor, ...]:
    n = embeddings.shape[0]
    stats = [embeddings.new_empty(n, dtype=compute_dtype(embeddings)) for _ in range(5)]
    counts = [embeddings.new_empty(n, dtype=torch.int64) for _ in range(2)]
    return (*stats[:4], *counts, stats[4])


def _embedding_gradient_fake(embeddings: Tensor, *_: object) -> Tensor:
    return embeddings.new_empty(embeddings.shape, dtype=compute_dtype(embeddings))


def _loss_and_gradient_fake(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    need_dx: bool,
    need_dr: bool,
    *_: object,
) -> tuple[Tensor, ...]:
    dtype = compute_dtype(embeddings)
    n = embeddings.shape[0]
    return (
        embeddings.new_empty(n, dtype=dtype),
        embeddings.new_empty(n, dtype=torch.int64),
        embeddings.new_empty(embeddings.shape if need_dx else (0,), dtype=dtype),
        embeddings.new_empty(
            ref_emb.shape if need_dr and ref_emb is not None else (0,), dtype=dtype
        ),
    )


def _reduced_loss_fake(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    _: str,
    wide: bool,
    *rest: Any,
) -> tuple[Tensor, ...]:
    pairs = embeddings, labels, ids, ref_emb, ref_labels, ref_ids
    rows, _kept, dx, dr = _loss_and_gradient_fake(*pairs, *rest)
    loss = embeddings.new_empty((), dtype=rows.dtype if wide else embeddings.dtype)
    return loss, dx, dr


def _row_loss_fake(statistics: list[Tensor], *_: object) -> Tensor:
    return torch.empty_like(statistics[0])


for _name, _run, _fake in (
    ("row_loss", _row_loss, _row_loss_fake),
    ("row_statistics", _row_statistics, _row_statistics_fake),
    ("embedding_gradient", _embedding_gradient, _embedding_gradient_fake),
    ("loss_and_gradient", _loss_and_gradient, _loss_and_gradient_fake),
    ("reduced_loss", _reduced_loss, _reduced_loss_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    library.register_fake(f"ms_kernels::{_name}", _fake, lib=_library)
    refuse_derivatives(_library, _name)

_library.impl("differentiable_once", lambda x, labels: x.clone(), "CompositeExplicitAutograd")
differentiate_once(_library, "differentiable_once")

row_statistics = torch.ops.ms_kernels.row_statistics.default
embedding_gradient = torch.ops.ms_kernels.embedding_gradient.default
loss_and_gradient = torch.ops.ms_kernels.loss_and_gradient.default
row_loss_of = torch.ops.ms_kernels.row_loss.default
reduced_loss = torch.ops.ms_kernels.reduced_loss.default
differentiable_once = torch.ops.ms_kernels.differentiable_once.default
