"""The histogram loss: of a whole batch, not a sum over anchors, and so a weighting rule apart."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ms_kernels import reference
from ms_kernels.backends.plain.sides import Sides, computed, full_precision
from ms_kernels.backends.plain.sweep import TEMPORARIES
from ms_kernels.checks import Pairs, check_whole, take_numbers
from ms_kernels.engine.autograd import differentiable_once, in_public_dtype
from ms_kernels.engine.refusals import refuse_second_derivative
from ms_kernels.engine.saved import keep
from ms_kernels.engine.sides import sides_of
from ms_kernels.rules.mining import Mining, kept_pairs
from ms_kernels.rules.spec import PairOptions
from ms_kernels.rules.weighting import Weighting

# A panel of anchors holds three counts for each of them.
MOST_BINS = 1 << 16


@dataclass(frozen=True)
class Histogram(Weighting):
    """sum_r h_neg[r] (h_pos[0] + ... + h_pos[r]): the estimated probability that a random negative
    is more similar than a random positive.

    h_pos and h_neg are the histograms of all kept positives and of all kept negatives of the batch,
    each of sum 1, on the nodes t_r = -1 + 2 r / bins, r = 0 to bins: a similarity between two nodes
    is shared between them in proportion to its nearness. One beyond [-1, 1], of rows that are not
    normalised or by rounding, counts at the end node and has no gradient. A pair that two anchors
    keep counts twice.

    bins: whole, from 1 to 65536. Default 100.

    Weights, for s between t_r and t_r+1: bins h_neg[r] / (2 |P|) of a positive, bins h_pos[r + 1] /
    (2 |N|) of a negative, with the numbers |P|, |N| of kept pairs of the batch. A batch without
    positives, or without negatives: 0. The loss is the batch's: the only reduction is "mean", and
    a panel of anchors alone has no loss. A similarity that is not finite makes it NaN.
    Source: Ustinova and Lempitsky, NIPS 2016, equations 1 to 4, whose R is bins + 1.
    pytorch-metric-learning's HistogramLoss of n_bins = bins is the same where every sample has a
    positive, without mining.
    """

    bins: int = 100

    def __post_init__(self) -> None:
        take_numbers(self)
        check_whole(
            *("Histogram.bins", self.bins, MOST_BINS, " of steps over [-1, 1],"),
            "; each anchor of a panel needs three counts of 8 bytes for each of them: use fewer",
        )

    def row_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        raise TypeError(
            "Histogram.row_loss: the loss is of the whole batch, not of each anchor; use "
            "pair_loss(..., weighting=Histogram())"
        )

    def batch_loss(self, similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        """The loss () of all similarities (N, M) at once, as often differentiable as you like."""
        pos, neg = (self._histogram(similarity[kept]) for kept in (positive, negative))
        return (neg * pos.cumsum(0)).sum()

    def _histogram(self, similarity: Tensor) -> Tensor:
        cell, part = _places(similarity, self.bins)
        nodes = similarity.new_zeros(self.bins + 1)
        nodes = nodes.index_add(0, cell, 1 - part).index_add(0, cell + 1, part)
        return nodes / max(len(similarity), 1)


def check_of_batch(weighting: Weighting, reduction: str, distance: str | None) -> None:
    """What a loss of the whole batch leaves no choice of."""
    if not isinstance(weighting, Histogram):
        return
    if distance is not None:
        raise ValueError(
            "distance: expected None with Histogram, whose bins are of similarities from -1 to 1, "
            f"got {distance!r}"
        )
    if reduction != "mean":
        raise ValueError(
            "reduction: expected 'mean' of Histogram, whose loss is one number of the whole batch "
            f"and no sum over anchors, got {reduction!r}; use 'mean' and scale the loss itself"
        )


def histogram_loss(
    weighting: Histogram,
    pairs: Pairs,
    mining: Mining,
    shared: PairOptions,
    reduction: str,
    dense: bool,
) -> Tensor:
    """`pair_loss` of the rule Histogram: all similarities at once if dense, else in panels."""
    check_of_batch(weighting, reduction, shared.distance)
    x, refs = pairs.embeddings, pairs.ref_emb
    if not dense:
        x, refs = differentiable_once(pairs, "Histogram")
    with torch.autocast(x.device.type, enabled=False):
        x = computed(x, shared.normalize)
        refs = None if refs is None else computed(refs, shared.normalize, x.dtype)
        if dense:
            similarity, positive, negative = reference.labelled_similarities(
                x,
                pairs.labels,
                refs,
                pairs.ref_labels,
                ids=pairs.ids,
                ref_ids=pairs.ref_ids,
                max_positive_similarity=shared.max_positive_similarity,
                normalize=False,
            )
            with torch.no_grad():
                positive, negative = kept_pairs(mining, similarity, positive, negative)
            loss = weighting.batch_loss(similarity, positive, negative) + _poison(similarity)
        else:
            loss = _StreamedHistogram.apply(  # type: ignore[no-untyped-call]
                x, refs, pairs, weighting.bins, mining, shared.max_positive_similarity
            ).to(x.dtype)
    return in_public_dtype(loss, pairs.embeddings, reduction)


def _poison(similarity: Tensor) -> Tensor:
    return torch.where(similarity.isfinite().all(), 0.0, torch.nan).to(similarity.dtype)


def _places(similarity: Tensor, bins: int) -> tuple[Tensor, Tensor]:
    """The lower node of each similarity, and how far on the way to the next one it is."""
    along = ((similarity.nan_to_num() + 1) * (bins / 2)).clamp(0, bins)
    cell = along.detach().long().clamp(max=bins - 1)
    return cell, along - cell


class _StreamedHistogram(torch.autograd.Function):
    """One sweep of panels fills both histograms; they are all that a second, of the gradient,
    needs to know of the other pairs."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        refs: Tensor | None,
        pairs: Pairs,
        bins: int,
        mining: Mining,
        max_positive_similarity: float | None,
    ) -> Tensor:
        columns = len(x if refs is None else refs)
        # Similarities are counted in integers: their sum is the same in any order, which on a GPU
        # is not ours to choose. A row's sum stays below 2^62.
        one = 1 << (62 - columns.bit_length())
        nodes = x.new_zeros(2, bins + 1, dtype=torch.float64)
        for _, similarity, positive, negative in _panels(
            x, refs, pairs, bins, mining, max_positive_similarity
        ):
            cell, part = _places(similarity, bins)
            upper = (part * one).long()
            node = cell + _first(positive, negative, bins + 1)
            counts = torch.zeros(len(node), 3 * (bins + 1), dtype=torch.int64, device=x.device)
            counts.scatter_add_(1, node, one - upper).scatter_add_(1, node + 1, upper)
            nodes += (counts.double() / one).sum(0).view(3, -1)[:2] + _poison(similarity)
        keep(ctx, x, refs, *pairs, nodes)
        ctx.options = bins, mining, max_positive_similarity
        positive_share, negative_share = _shares(nodes)
        # In float64, and cast outside: a cast to the same dtype is the same tensor, and where torch
        # 2.11 traces a forward pass that returns it, its gradient is 0.
        loss: Tensor = (negative_share * positive_share.cumsum(0)).sum()
        return loss

    @staticmethod
    def backward(ctx: Any, dloss: Tensor) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("Histogram")
        x, refs, *tensors, nodes = ctx.saved_tensors
        bins, mining, cap = ctx.options
        r = x if refs is None else refs
        dx = torch.zeros_like(x)
        dr = dx if refs is None else torch.zeros_like(r)
        positive_share, negative_share = _shares(nodes)
        counts = nodes.sum(1, keepdim=True).clamp(min=1)
        slopes = torch.stack([-negative_share[:-1], positive_share[1:]]) / counts * (bins / 2)
        slopes = torch.cat([slopes.flatten(), slopes.new_zeros(bins)]).to(x.dtype)
        panels = _panels(x, refs, Pairs(*tensors), bins, mining, cap)
        with full_precision(x):  # the backward pass may be called under autocast
            for rows, similarity, positive, negative in panels:
                inside = similarity.abs() <= 1
                cell, _ = _places(similarity, bins)
                weight = slopes.take(cell + _first(positive & inside, negative & inside, bins))
                if ctx.needs_input_grad[0]:
                    dx[rows] += weight @ r
                if refs is None or ctx.needs_input_grad[1]:
                    dr += weight.T @ x[rows]
        # Last, as it may be one of a batch, which nothing else here could be written into.
        return dx * dloss, None if refs is None else dr * dloss, None, None, None, None


def _shares(nodes: Tensor) -> Tensor:
    """Histograms (2, bins + 1) of sum 1; all 0 where there is no pair."""
    return nodes / nodes.sum(1, keepdim=True).clamp(min=1)


def _first(positive: Tensor, negative: Tensor, length: int) -> Tensor:
    """Where the part of a pair's kind begins in three parts of a length: for positives, for
    negatives, and for the rest."""
    return torch.where(positive, 0, torch.where(negative, length, 2 * length))


def _panels(
    x: Tensor,
    refs: Tensor | None,
    pairs: Pairs,
    bins: int,
    mining: Mining,
    max_positive_similarity: float | None,
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """Some rows at a time, their similarities (rows, M), and the masks of kept pairs."""
    shared = PairOptions(max_positive_similarity=max_positive_similarity, normalize=False)
    sides = Sides(
        *sides_of(Pairs(x, pairs.labels, pairs.ids, refs, pairs.ref_labels, pairs.ref_ids)), shared
    )
    row_bytes = max(1, len(sides.r) * x.element_size())
    for panel in sides.panels(max(TEMPORARIES, 3 * (bins + 1) * 16 // row_bytes)):
        kept = kept_pairs(mining, panel.sim, panel.positive, panel.negative)
        yield panel.rows, panel.sim, *kept
