"""How losses of chosen pairs are computed: by kernels, by streamed formulas, from lists.

The one place that knows what the kernels measure. All results are in the compute dtype.
"""

import contextlib
from collections.abc import Callable

import torch
from torch import Tensor

from ms_kernels.api.functional import pair_loss
from ms_kernels.api.listed import listed_similarities
from ms_kernels.api.mining import mined_pairs
from ms_kernels.api.road import backend_of, loss_of
from ms_kernels.api.streaming import streamed_loss
from ms_kernels.backends.interface import compute_dtype
from ms_kernels.checks import Pairs, check_pairs
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.pairs import (
    Chosen,
    numbers_of_pairs,
    of_one_dtype,
)
from ms_kernels.engine.summed import Summed, summed_loss
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.made import options_of
from ms_kernels.rules.mining import Mining, MultiSimilarityMining, NoMining
from ms_kernels.rules.weighting import Contrastive, Weighting

Formula = Callable[[Tensor, Tensor, Tensor], Tensor]


def row_losses(
    measure: Measure, weighting: Weighting, chosen: Chosen
) -> tuple[Tensor, RowStatistics]:
    """(N,) losses by the kernels, and what they are made of."""
    pairs, mining, _ = chosen
    x, labels, ids, r, ref_labels, ref_ids = pairs
    with _wide(x):
        return pair_loss(
            x,
            labels,
            r,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            weighting=weighting,
            mining=mining,
            normalize=measure.normalize,
            distance=measure.distance,
            reduction="none",
            return_statistics=True,
        )


def summed_rows(measure: Measure, weighting: Weighting, chosen: Chosen) -> Summed | None:
    """The sum of the losses in one sweep with its gradient; None where no kernel has it."""
    pairs, mining, _ = chosen
    shared = options_of(None, measure.normalize, measure.distance)
    loss = loss_of(weighting, mining, shared, "auto")
    if loss.spec is None or torch.compiler.is_compiling():
        return None
    x, labels, ids, r, ref_labels, ref_ids = pairs
    pairs = check_pairs(x, labels, r, ref_labels, ids, ref_ids)
    backend = backend_of(loss, pairs)
    return None if backend is None else summed_loss(pairs, loss.spec, backend)


def streamed_rows(measure: Measure, formula: Formula, chosen: Chosen) -> Tensor:
    """(N,) numbers of a formula of a panel of similarities, in O(panel * M) memory."""
    pairs, mining, _ = chosen
    x, labels, ids, r, ref_labels, ref_ids = pairs
    with _wide(x):
        return streamed_loss(
            formula,
            x,
            labels,
            r,
            ref_labels,
            ids=ids,
            ref_ids=ref_ids,
            mining=mining,
            normalize=measure.normalize,
            distance=measure.distance,
            reduction="none",
        )


def counted_rows(measure: Measure, formula: Formula, chosen: Chosen) -> Tensor:
    """The same of a formula that counts pairs: constants."""
    pairs, mining, mined = chosen
    x, labels, ids, r, ref_labels, ref_ids = pairs
    r = None if r is None else r.detach()
    still = Chosen(Pairs(x.detach(), labels, ids, r, ref_labels, ref_ids), mining, mined)
    with torch.no_grad():
        return streamed_rows(measure, formula, still)


def numbers_kept(measure: Measure, chosen: Chosen) -> tuple[Tensor, Tensor]:
    """(N,) positives and negatives that mining keeps of each anchor."""
    if isinstance(chosen.mining, NoMining):
        return numbers_of_pairs(chosen.pairs)
    with torch.no_grad():
        _, stats = row_losses(measure, Contrastive(), chosen)
    return stats.pos_kept, stats.neg_kept


def list_pairs(measure: Measure | None, pairs: Pairs, mining: Mining) -> tuple[Tensor, ...]:
    """(anchors, positives, anchors, negatives) that mining keeps, row by row.

    A pair of equal ids takes part in the mining and leaves the positives after it.
    """
    x, labels, ids, r, ref_labels, ref_ids = pairs
    found: tuple[Tensor, ...]
    if measure is None:
        x, r = x[:, :0], None if r is None else r[:, :0]  # nobody looks at similarities
        found = mined_pairs(x, labels, r, ref_labels, mining=mining)
    else:
        options = {"normalize": measure.normalize, "distance": measure.distance, "mining": mining}
        found = mined_pairs(x, labels, r, ref_labels, **options)  # type: ignore[arg-type]
    if measure is not None and isinstance(mining, MultiSimilarityMining):
        sides = measure, x, x if r is None else r
        found = (*_ascending(*sides, *found[:2]), *_ascending(*sides, *found[2:]))
    anchors, positives, others, negatives = found
    if ids is not None and ref_ids is not None:
        others_copy = ids[anchors] != ref_ids[positives]
        anchors, positives = anchors[others_copy], positives[others_copy]
    return anchors, positives, others, negatives


def similarities(
    measure: Measure, x: Tensor, r: Tensor, anchors: Tensor, candidates: Tensor
) -> Tensor:
    """(L,) of listed pairs."""
    mutual = r is x
    x, r = of_one_dtype(x, r)
    return listed_similarities(
        x,
        x if mutual else r,
        anchors,
        candidates,
        normalize=measure.normalize,
        distance=measure.distance,
    )


def _ascending(
    measure: Measure, x: Tensor, r: Tensor, anchors: Tensor, candidates: Tensor
) -> tuple[Tensor, Tensor]:
    """Pairs of each anchor in ascending order of what its distance object measures, as
    pytorch-metric-learning's miner has them: NPairsLoss takes the first."""
    value = similarities(measure, x, r, anchors, candidates)
    order = (value if measure.distance is None else -value).argsort(stable=True)
    order = order[anchors[order].argsort(stable=True)]
    return anchors[order], candidates[order]


def _wide(x: Tensor) -> contextlib.AbstractContextManager[object]:
    """Under it losses of half rows stay in float32."""
    if x.dtype == compute_dtype(x):
        return contextlib.nullcontext()
    return torch.autocast(x.device.type, dtype=torch.bfloat16)
