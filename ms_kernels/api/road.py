"""The road of a loss: dense, streamed, or fused on a backend; reduced at once or row by row."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.api.counting import row_weights, without_label
from ms_kernels.api.dense import dense_rows, similarities_of
from ms_kernels.api.histogram import Histogram, histogram_loss
from ms_kernels.api.known import Known, Tensors, keep, key_of, known
from ms_kernels.api.learned import (
    in_kernels,
    is_read_in_place,
    learns_in_kernels,
    take_in,
    takes_in,
    unscaled,
    way_out,
    way_out_of_statistics,
)
from ms_kernels.api.streaming import streamed, streamed_rows
from ms_kernels.backends import dispatch
from ms_kernels.backends.crowd import is_crowded
from ms_kernels.backends.plain.sides import Panel
from ms_kernels.backends.plain.statistics import statistics_of
from ms_kernels.checks import (
    Pairs,
    check_choice,
    check_flag,
    check_pairs,
    check_rule,
    savable_pairs,
)
from ms_kernels.engine import ops
from ms_kernels.engine.autograd import fused_loss, in_public_dtype
from ms_kernels.engine.counted import fused_counted_loss
from ms_kernels.engine.reduction import reduce_rows
from ms_kernels.engine.refusals import constants, refuse_tracing
from ms_kernels.reference import REDUCTIONS, RowStatistics
from ms_kernels.rules.made import options_of, spec_of
from ms_kernels.rules.mining import Mining
from ms_kernels.rules.spec import PairOptions, PairSpec
from ms_kernels.rules.weighting import Triplet, Weighting


class Loss(NamedTuple):
    """What a call asks for, checked, and its spec if the rules are of this package."""

    weighting: Weighting
    mining: Mining
    shared: PairOptions
    backend: str
    spec: PairSpec | None


# Functions: torch.compile of torch 2.6 traces no property and no _replace of a named tuple.
def is_dense(loss: Loss) -> bool:
    return loss.backend == "reference"


def is_of_batch(loss: Loss) -> bool:
    """A loss that is no sum over anchors."""
    return isinstance(loss.weighting, Histogram)


Counting = tuple[int | None, Tensor | None, Tensor | None]


def loss_and_statistics(
    tensors: Tensors,
    rules: tuple[Weighting, Mining],
    options: tuple[float | None, bool, str | None, str, str],
    counting: Counting,
    return_statistics: bool,
) -> tuple[Tensor, RowStatistics | None]:
    """`pair_loss`, whose arguments these are in their order; the statistics if asked."""
    embeddings, labels, ref_emb, ref_labels, ids, ref_ids = tensors
    weighting, mining = rules
    max_positive_similarity, normalize, distance, reduction, backend = options
    key = None if return_statistics else key_of(tensors, rules, options, counting)
    before = known(key)
    if before is not None:
        pairs = Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids)
        return fused_loss(pairs, before.spec, reduction, before.backend, before.plans), None
    ignore_label, anchor_mask, sample_weight = counting
    check_choice("reduction", reduction, REDUCTIONS)
    shared = options_of(max_positive_similarity, normalize, distance)
    loss = loss_of(weighting, mining, shared, backend)
    if not is_dense(loss):
        refuse_tracing("ms_kernels")
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids, one_dtype=False)
    if pairs.labels.ndim == 2:
        loss = _of_sets(loss)
    weight = None
    if ignore_label is not None or anchor_mask is not None or sample_weight is not None:
        if is_of_batch(loss) and (anchor_mask is not None or sample_weight is not None):
            raise ValueError(
                f"anchor_mask, sample_weight: expected None with {weighting!r}, whose loss is of "
                "the whole batch and not of anchors; ignore_label leaves rows out"
            )
        weight = row_weights(pairs, ignore_label, anchor_mask, sample_weight)
        pairs = without_label(pairs, ignore_label)
    if loss.spec is None and weighting.learned and (return_statistics or not is_dense(loss)):
        scales = pairs.labels.ndim == 1 and takes_in(weighting, mining, shared)
        learned = None
        if not scales or is_read_in_place(pairs):
            learned = in_kernels(pairs, rules, shared, reduction, backend, weight)
        if learned is None and scales:
            how = reduction, weight, return_statistics
            return _with_temperature(loss, pairs, *how)
        if learned is not None:
            return learned[0], learned[1] if return_statistics else None
        if return_statistics:
            raise ValueError(way_out_of_statistics(weighting))
        if backend not in ("auto", "panels"):
            raise ValueError(way_out(weighting, backend))
    if not return_statistics and (weight is None or is_of_batch(loss)):
        return reduced(loss, pairs, reduction, lambda found: keep(key, tensors, pairs, found)), None
    check_flag("return_statistics", return_statistics)
    found, statistics = counted(loss, pairs, reduction, weight, return_statistics)
    return found, statistics if return_statistics else None


def _of_sets(loss: Loss) -> Loss:
    """Of rows with several labels: by the loss's own formula, streamed."""
    if loss.backend not in ("auto", "panels", "reference"):
        raise ValueError(
            "backend: expected 'auto', 'panels' or 'reference' with sets of labels, got "
            f"{loss.backend!r}"
        )
    return Loss(loss.weighting, loss.mining, loss.shared, loss.backend, None)


def _with_temperature(
    loss: Loss, pairs: Pairs, reduction: str, weight: Tensor | None, return_statistics: bool
) -> tuple[Tensor, RowStatistics | None]:
    """Of a temperature that learns."""
    x, stats = pairs.embeddings, None
    pairs, rule, shared = take_in(pairs, loss.weighting, loss.shared)
    scaled = loss_of(rule, loss.mining, shared, loss.backend)
    if weight is None and not return_statistics:
        found = reduced(scaled, pairs, reduction)
    else:
        found, stats = counted(scaled, pairs, reduction, weight, return_statistics)
    if not return_statistics or stats is None:
        return in_public_dtype(found, x, reduction), None
    return in_public_dtype(found, x, reduction), unscaled(stats, loss.weighting)


def loss_of(weighting: Weighting, mining: Mining, shared: PairOptions, backend: str) -> Loss:
    check_rules(weighting, mining)
    check_choice("backend", backend, dispatch.NAMES)
    return Loss(weighting, mining, shared, backend, spec_of(weighting, mining, shared))


def check_rules(weighting: object, mining: object) -> None:
    check_rule("weighting", weighting, Weighting)
    check_rule("mining", mining, Mining)


def no_statistics(name: str, weighting: Weighting, mining: Mining) -> str:
    return (
        f"{name}: expected rules of this package, whose losses follow from sums, got "
        f"{dispatch.names_of(weighting, mining)}; pair_weights takes any rule"
    )


def reduced(
    loss: Loss,
    pairs: Pairs,
    reduction: str,
    remember: Callable[[Known], None] = lambda found: None,
) -> Tensor:
    """Of the whole batch, in the public dtype. remember: what to do with the road of a fused one,
    for calls like this."""
    if is_dense(loss):
        pairs = savable_pairs(pairs)
    if is_of_batch(loss) and loss.backend in ("auto", "panels", "reference"):
        given = loss.weighting, pairs, loss.mining, loss.shared, reduction, is_dense(loss)
        return histogram_loss(*given)  # type: ignore[arg-type]
    if is_dense(loss):
        rows, kept = dense_rows(pairs, loss.weighting, loss.mining, loss.shared)
        return in_public_dtype(reduce_rows(rows, kept, reduction), pairs.embeddings, reduction)
    backend = backend_of(loss, pairs)
    if loss.spec is None or backend is None:
        return streamed(loss.weighting.row_loss, pairs, loss.mining, loss.shared, reduction)
    remember(Known(loss.spec, backend, {}))
    return fused_loss(pairs, loss.spec, reduction, backend)


def counted(
    loss: Loss, pairs: Pairs, reduction: str, weight: Tensor | None, statistics: bool
) -> tuple[Tensor, RowStatistics | None]:
    """In the public dtype, where anchors count by their weights, and if asked the statistics: those
    that a fused loss is made of; dense and streamed losses are followed by a sweep for them."""
    x, found = pairs.embeddings, None
    if statistics and loss.spec is None:
        raise ValueError(no_statistics("return_statistics", loss.weighting, loss.mining))
    backend = None if is_dense(loss) else backend_of(loss, pairs)
    if loss.spec is not None and backend is not None:
        return fused_counted_loss(pairs, loss.spec, reduction, backend, weight)
    if is_dense(loss):
        pairs = savable_pairs(pairs)
        rows, kept = dense_rows(pairs, loss.weighting, loss.mining, loss.shared)
    else:
        rows, kept = streamed_rows(loss.weighting.row_loss, pairs, loss.mining, loss.shared)
    if statistics:
        found = row_statistics(loss, pairs)
    return in_public_dtype(reduce_rows(rows, kept, reduction, weight), x, reduction), found


def row_statistics(loss: Loss, pairs: Pairs) -> RowStatistics:
    """Of each anchor, as constants; the rules are of this package."""
    spec = loss.spec
    assert spec is not None
    if pairs.labels.ndim == 2:
        raise ValueError(
            f"labels: expected shape ({pairs.labels.shape[0]},) for statistics, got sets of labels "
            f"{tuple(pairs.labels.shape)}; pair_weights takes them"
        )
    with constants(), torch.autocast(pairs.embeddings.device.type, enabled=False):
        dispatch.check_known(loss.backend, spec, loss.weighting, loss.mining)
        if _chosen(loss.backend, pairs, spec) == "reference":
            rows = slice(pairs.labels.shape[0])
            return statistics_of(Panel(rows, *similarities_of(pairs, loss.shared)), spec)
        return RowStatistics(*ops.row_statistics(*pairs, spec.pack(), loss.backend, None))


def in_plain_pytorch(loss: Loss, pairs: Pairs) -> bool:
    """Whether autograd looks at the candidates once more in the backward pass."""
    if loss.backend in ("panels", "reference"):
        return True
    if loss.spec is None:
        return not learns_in_kernels(pairs, loss.weighting, loss.mining, loss.shared, loss.backend)
    return backend_of(loss, pairs) is None


def backend_of(loss: Loss, pairs: Pairs) -> str | None:
    """What the op is told; None where the loss is streamed instead."""
    spec, backend = loss.spec, loss.backend
    dispatch.check_known(backend, spec, loss.weighting, loss.mining)
    chosen, triplet = backend, isinstance(loss.weighting, Triplet)
    # The op chooses too: of most losses it is known here already where they go.
    if triplet or backend != "auto" or torch.compiler.is_compiling():
        chosen = _chosen(backend, pairs, spec)
    if backend == "auto" and triplet and chosen in dispatch.MODULES:
        if is_crowded(pairs, dispatch.MODULES[chosen].CROWD):
            backend = chosen = "panels"
    # The op of a compiled graph runs where autograd, which panels need, is switched off.
    traced = chosen == "panels" and torch.compiler.is_compiling()
    if traced and spec is not None and not spec.is_multi_similarity:
        return None
    return backend


def _chosen(backend: str, pairs: Pairs, spec: PairSpec | None) -> str:
    x, r = pairs.embeddings, pairs.ref_emb
    samples = len(x) if r is None else max(len(x), len(r))
    if not torch.compiler.is_compiling():
        return dispatch.resolve(backend, x.device.type, samples, spec, x.dtype)
    # Sizes and options may be symbols: of them nothing but comparisons is asked, and of sizes only
    # where the answer hangs on them.
    sized = spec is not None and isinstance(spec.weighting, Triplet)
    known = dispatch.takers(spec)
    return _chosen_in_graph(
        backend, x.device.type, dispatch.as_many(samples) if sized else 0, known, x.dtype
    )


def _chosen_in_graph(
    backend: str, device: str, samples: int, known: tuple[str, ...], dtype: torch.dtype
) -> str:
    if backend != "auto":
        return dispatch.resolve(backend, device, samples, dtype=dtype)
    here = dispatch.serving(dispatch.built(device), dispatch.DEFAULT, dtype)
    return dispatch.choose(device, here & frozenset(known), samples)


# A compiled graph takes the answer as a constant. torch.compiler.assume_constant_result sets this
# too, but imports the compiler, which takes as long as the rest of torch.
_chosen_in_graph._dynamo_marked_constant = True  # type: ignore[attr-defined]
