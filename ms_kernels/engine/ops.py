"""The two functions of a backend, and their fusion, as ops of PyTorch.

Ops are what torch.compile sees: it never traces into a backend. `spec` is PairSpec.pack(); backend
"auto" is resolved inside. No argument has a default: a compiled graph on disk names those that were
left out, and is found again after an upgrade that has renamed or removed them.
"""

import operator
from typing import Any

import torch
from torch import Tensor, library

from ms_kernels.backends.interface import Term
from ms_kernels.checks import Pairs
from ms_kernels.engine.counted_pairs import count_pairs, gradient_of_options, losses_of
from ms_kernels.engine.fakes import (
    counted_loss_fake,
    embedding_gradient_fake,
    learned_gradient_fake,
    loss_and_gradient_fake,
    reduced_loss_fake,
    row_loss_fake,
    row_statistics_fake,
)
from ms_kernels.engine.reduced import module_of, reduce_pairs
from ms_kernels.engine.refusals import differentiate_once, refuse_derivatives
from ms_kernels.engine.sides import sides_for
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.spec import PairSpec, unpack

_PAIRS = (
    "Tensor embeddings, Tensor labels, Tensor? ids, "
    "Tensor? ref_emb, Tensor? ref_labels, Tensor? ref_ids"
)
_library: Any = library.Library("ms_kernels", "DEF")  # type: ignore[no-untyped-call]
_library.define(
    f"row_statistics({_PAIRS}, float[] spec, str backend, Tensor? option_values) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# option_values: (k,) of a weighting rule that learns, in its order; those of the spec mean nothing.
_library.define(
    f"learned_gradient({_PAIRS}, Tensor[] term, Tensor option_values, bool need_dx, bool need_dr, "
    "float[] spec, str backend) -> (Tensor, Tensor, Tensor)"
)
# Losses, statistics and gradients of the sum of losses times dloss.
_library.define(
    f"counted_loss({_PAIRS}, bool need_dx, bool need_dr, bool need_options, float[] spec, "
    "str backend, Tensor? dloss, Tensor? option_values) "
    "-> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
# A term is the statistics and the gradient of the row losses, or empty.
_library.define(
    f"embedding_gradient({_PAIRS}, Tensor[] row_term, Tensor[] column_term, "
    "float[] spec, str backend) -> Tensor"
)
_library.define(
    f"loss_and_gradient({_PAIRS}, bool need_dx, bool need_dr, float[] spec, str backend, "
    "Tensor? dloss) -> (Tensor, Tensor, Tensor, Tensor)"
)
# The reduced loss, in the dtype of the embeddings unless `wide`, and its gradients, in the compute
# dtype.
_library.define(
    f"reduced_loss({_PAIRS}, str reduction, bool wide, bool need_dx, bool need_dr, float[] spec, "
    "str backend) -> (Tensor, Tensor, Tensor)"
)
# Ops of their own, so that no compiler chooses the order of a sum or another exponential.
_library.define(
    "row_loss(Tensor[] statistics, Tensor embeddings, Tensor? ref_emb, float[] spec, str backend, "
    "Tensor? option_values) -> Tensor"
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
    option_values: Tensor | None,
) -> tuple[Tensor, ...]:
    pairs, loss = Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids), _one_sided(spec)
    module = module_of(embeddings, ref_emb, loss, backend)
    anchors, candidates = sides_for(module, pairs)
    if option_values is not None:
        return tuple(module.learned_statistics(anchors, candidates, loss, option_values))
    return tuple(module.row_statistics(anchors, candidates, loss))


def _learned_gradient(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    term: list[Tensor],
    option_values: Tensor,
    need_dx: bool,
    need_dr: bool,
    spec: list[float],
    backend: str,
) -> tuple[Tensor, ...]:
    pairs, loss = Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids), _one_sided(spec)
    module = module_of(embeddings, ref_emb, loss, backend)
    of_rows = _term(term)
    assert of_rows is not None
    how = loss, option_values, of_rows, need_dx, need_dr
    dx, dr, weight_sums = module.learned_gradient(*sides_for(module, pairs), *how)
    found = gradient_of_options(loss, option_values, *of_rows, weight_sums)
    return _or_nothing(dx, found), _or_nothing(dr, found), found


def _counted_loss(
    embeddings: Tensor,
    labels: Tensor,
    ids: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ref_ids: Tensor | None,
    need_dx: bool,
    need_dr: bool,
    need_options: bool,
    spec: list[float],
    backend: str,
    dloss: Tensor | None,
    option_values: Tensor | None,
) -> tuple[Tensor, ...]:
    pairs, loss = Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids), _one_sided(spec)
    module = module_of(embeddings, ref_emb, loss, backend)
    how = loss, need_dx, need_dr, need_options, dloss, option_values
    losses, stats, dx, dr, weight_sums = count_pairs(module, sides_for(module, pairs), *how)
    doptions = None
    if need_options and option_values is not None and weight_sums is not None:
        doptions = gradient_of_options(loss, option_values, stats, dloss, weight_sums)
    return losses, *stats, *(_or_nothing(d, losses) for d in (dx, dr, doptions))


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
    pairs, loss = Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids), _one_sided(spec)
    module = module_of(embeddings, ref_emb, loss, backend)
    rows, columns = sides_for(module, pairs)
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
    dloss: Tensor | None,
) -> tuple[Tensor, ...]:
    pairs, loss = Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids), _one_sided(spec)
    module = module_of(embeddings, ref_emb, loss, backend)
    anchors, candidates = sides_for(module, pairs)
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


def _or_nothing(tensor: Tensor | None, like: Tensor) -> Tensor:
    """An op must return tensors: an empty one for what was not asked."""
    return like.new_empty(0) if tensor is None else tensor


def _row_loss(
    statistics: list[Tensor],
    embeddings: Tensor,
    ref_emb: Tensor | None,
    spec: list[float],
    backend: str,
    option_values: Tensor | None,
) -> Tensor:
    stats, loss = RowStatistics(*statistics), unpack(spec)
    module = module_of(embeddings, ref_emb, loss, backend)
    return losses_of(module, stats, loss, option_values)


def _one_sided(spec: list[float]) -> PairSpec:
    loss = unpack(spec)
    if loss.two_sided:
        raise ValueError("two_sided: expected False but for a reduced loss, got True")
    return loss


def _term(tensors: list[Tensor]) -> Term | None:
    if not tensors:
        return None
    *stats, dloss = tensors
    return Term(RowStatistics(*stats), dloss)


for _name, _run, _fake in (
    ("row_loss", _row_loss, row_loss_fake),
    ("row_statistics", _row_statistics, row_statistics_fake),
    ("counted_loss", _counted_loss, counted_loss_fake),
    ("learned_gradient", _learned_gradient, learned_gradient_fake),
    ("embedding_gradient", _embedding_gradient, embedding_gradient_fake),
    ("loss_and_gradient", _loss_and_gradient, loss_and_gradient_fake),
    ("reduced_loss", _reduced_loss, reduced_loss_fake),
):
    _library.impl(_name, _run, "CompositeExplicitAutograd")
    library.register_fake(f"ms_kernels::{_name}", _fake, lib=_library)
    refuse_derivatives(_library, _name)

_library.impl("differentiable_once", lambda x, labels: x.clone(), "CompositeExplicitAutograd")
differentiate_once(_library, "differentiable_once")

row_statistics = torch.ops.ms_kernels.row_statistics.default
counted_loss = torch.ops.ms_kernels.counted_loss.default
learned_gradient = torch.ops.ms_kernels.learned_gradient.default
embedding_gradient = torch.ops.ms_kernels.embedding_gradient.default
loss_and_gradient = torch.ops.ms_kernels.loss_and_gradient.default
row_loss_of = torch.ops.ms_kernels.row_loss.default
reduced_loss = torch.ops.ms_kernels.reduced_loss.default
differentiable_once = torch.ops.ms_kernels.differentiable_once.default
