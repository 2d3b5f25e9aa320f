"""Lifted structure: each positive pair against the negatives of both its ends."""

import math
from typing import Any

import torch
from pytorch_metric_learning import losses as theirs
from torch import Tensor

from ms_kernels.backends.interface import Side
from ms_kernels.backends.plain.sides import Sides, computed
from ms_kernels.checks import Pairs
from ms_kernels.compat.pytorch_metric_learning.choosing import are_too_few, as_pairs, choose
from ms_kernels.compat.pytorch_metric_learning.lists import listed, rows_of_lists
from ms_kernels.compat.pytorch_metric_learning.measures import Measure
from ms_kernels.compat.pytorch_metric_learning.pairs import (
    Call,
    Chosen,
    count_of_label,
    numbers_of_pairs,
)
from ms_kernels.compat.pytorch_metric_learning.reducing import (
    LossDict,
    Totals,
    is_linear,
    reduced,
    singles,
)
from ms_kernels.compat.pytorch_metric_learning.roads import (
    row_losses,
    similarities,
    streamed_rows,
)
from ms_kernels.compat.pytorch_metric_learning.served import Served
from ms_kernels.engine.refusals import refuse_second_derivative
from ms_kernels.reference import masked_log_sum_exp
from ms_kernels.rules.mining import NoMining
from ms_kernels.rules.softmax import DecoupledContrastive
from ms_kernels.rules.spec import PairOptions
from ms_kernels.rules.sums import log_add_exp
from ms_kernels.settings import options

# Bytes that a pair takes while it is listed, its gradient included.
LISTED = 128
# Arrays of a panel's size that are alive at once.
TEMPORARIES = 8


class LiftedStructureLoss(Served, theirs.LiftedStructureLoss):
    """pytorch-metric-learning's, by kernels: each positive pair against the negatives of both its
    ends. The positive pairs are listed; where they would fill more than a panel, as of few classes,
    they are streamed, and so are the negatives, unless the reducer looks at single pairs."""

    def losses_of(self, call: Call, measure: Measure) -> LossDict:
        chosen = choose(call, measure)
        if isinstance(chosen, Chosen) and not isinstance(chosen.mining, NoMining):
            chosen = tuple(call.indices_tuple)
        if isinstance(chosen, Chosen):
            both = torch.stack([number.sum() for number in numbers_of_pairs(chosen.pairs)])
            of_positives, of_negatives = both.tolist()
            few = of_negatives <= int(self.exact_small_batches) and of_positives <= 1
            if few or of_positives == 0 or of_negatives == 0:
                return self.zero_losses()
            streams = of_positives * LISTED > options.panel_bytes and is_linear(self, "loss")
            if streams and not torch.compiler.is_compiling():
                return {"loss": self._streamed(measure, chosen, both[0])}
            anchors, positives = positive_pairs(chosen.pairs, of_positives)
            similarity = similarities(measure, call.embeddings, call.ref_emb, anchors, positives)
            ends = chosen.pairs, anchors, positives
            if holds_log_sums(measure, chosen) and are_anchors_too(*ends):
                total = log_sums(measure, chosen, anchors, similarity)
                self.calls["kernels"] += 1
            else:
                total = streamed_rows(measure, log_sum_of_negatives, chosen)
                self.calls["streamed"] += 1
        else:
            lists = as_pairs(chosen)
            anchors, positives, others, _ = lists
            if are_too_few(self, lists) or len(anchors) == 0 or len(others) == 0:
                return self.zero_losses()
            of = listed(measure, call.embeddings, call.ref_emb, lists)
            anchors, positives, similarity = of.anchors, of.positives, of.pos_similarity
            total = rows_of_lists(log_sum_of_negatives, of)
            total = total.masked_fill(torch.bincount(of.others, minlength=of.n) == 0, -math.inf)
            self.calls["lists"] += 1
        push = of_both_ends(total, anchors, positives, measure.threshold(self.neg_margin))
        hinge = (push + measure.threshold(self.pos_margin) - similarity).clamp(min=0)
        return {"loss": singles(hinge.square() / 2, (anchors, positives), "pos_pair")}

    def _streamed(self, measure: Measure, chosen: Chosen, number: Tensor) -> dict[str, Any]:
        """Reduced: sums over the pairs, of which none is kept."""
        total = streamed_rows(measure, log_sum_of_negatives, chosen)
        self.calls["streamed"] += 1
        margins = map(measure.threshold, (self.pos_margin, self.neg_margin))
        loss, active = summed_pairs(measure, chosen.pairs, total, *margins)
        return reduced(self, "loss", Totals(loss, number.clone, active.clone))


def log_sum_of_negatives(similarity: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return masked_log_sum_exp(similarity, negative)


def holds_log_sums(measure: Measure, chosen: Chosen) -> bool:
    """Whether log-sum-exps follow from losses. Less a mean of raw similarities, however large, a
    loss may have lost its own digits. Less a mean distance that a GPU's kernels take from products
    it would leave the gradient of near positives wrong: what is added to it is of differences."""
    on_cpu = chosen.pairs.embeddings.device.type == "cpu"
    return measure.normalize and (on_cpu or measure.distance is None)


def are_anchors_too(pairs: Pairs, anchors: Tensor, positives: Tensor) -> bool:
    """Whether the other end of each pair has positives of its own: in a batch by itself it has the
    pair's anchor; of separate references, and in a memory, it is another row, by its number."""
    if pairs.ref_emb is None:
        return True
    n = len(pairs.labels)
    having = torch.zeros(n, dtype=torch.bool, device=anchors.device)
    having[anchors] = True
    return bool((having[positives.clamp(max=n - 1)] | (positives >= n)).all())


def log_sums(measure: Measure, chosen: Chosen, anchors: Tensor, similarity: Tensor) -> Tensor:
    """(N,) log-sum-exp over the negatives of each anchor that has positives, -inf where it has no
    negatives: decoupled contrastive losses of temperature 1 are it less the mean positive."""
    losses, stats = row_losses(measure, DecoupledContrastive(1.0), chosen)
    sums = torch.zeros_like(losses).index_add(0, anchors, similarity.to(losses.dtype))
    total = losses + sums / stats.pos_kept.clamp(min=1)
    return total.masked_fill(stats.neg_kept == 0, -math.inf)


def of_both_ends(total: Tensor, anchors: Tensor, positives: Tensor, margin: float) -> Tensor:
    """Log-sum-exp over the negatives of both ends of each pair, 0 where there are none. The other
    end is an anchor by its number, of separate references too: so it is there."""
    n = len(total)
    other = total[positives.clamp(max=n - 1)]
    other = other.masked_fill((positives >= n) | (positives == anchors), -math.inf)
    both = log_add_exp(total[anchors], other)
    return torch.where(both == -math.inf, 0, both - margin)


def positive_pairs(pairs: Pairs, number: int) -> tuple[Tensor, Tensor]:
    """Anchors and positives by their labels, anchor by anchor.

    number: how many they are, so that no GPU is waited for but where ids leave some out.
    """
    labels = pairs.labels if pairs.ref_labels is None else pairs.ref_labels
    own, left_out = pairs.ref_emb is None, pairs.ids is not None and pairs.ref_ids is not None
    order = labels.argsort(stable=True)
    first = torch.searchsorted(labels[order], pairs.labels.contiguous())
    count = count_of_label(pairs) - int(own)
    size = None if left_out and not own else number
    numbered = torch.arange(len(count), device=count.device)
    anchors = numbered.repeat_interleave(count, output_size=size)
    place = torch.arange(len(anchors), device=count.device)
    within = place - (count.cumsum(0) - count)[anchors]
    if own:  # past itself
        rank = torch.empty_like(order).scatter_(0, order, numbered) - first
        within += within >= rank[anchors]
    positives = order[first[anchors] + within]
    if left_out and not own:
        assert pairs.ids is not None and pairs.ref_ids is not None
        others = pairs.ids[anchors] != pairs.ref_ids[positives]
        anchors, positives = anchors[others], positives[others]
    return anchors, positives


def summed_pairs(
    measure: Measure, pairs: Pairs, total: Tensor, pos_margin: float, neg_margin: float
) -> tuple[Tensor, Tensor]:
    """() sum over all positive pairs of the squares of their hinges, halved, and () how many of
    these are not 0, in O(panel) memory.

    total: (N,) log-sum-exp over the negatives of each anchor, -inf where it has none.
    """
    x, labels, ids, r, ref_labels, ref_ids = pairs
    with torch.autocast(x.device.type, enabled=False):
        x = computed(x, measure.normalize)
        r = None if r is None else computed(r, measure.normalize)
        if not torch.is_grad_enabled():  # which a function of autograd does not see
            x, r, total = x.detach(), None if r is None else r.detach(), total.detach()
        kept = Pairs(x, labels, ids, r, ref_labels, ref_ids)
        given = measure.distance, pos_margin, neg_margin
        return _Summed.apply(x, r, total, kept, given)  # type: ignore[no-untyped-call]


class _Summed(torch.autograd.Function):
    """The sum with its gradient in one sweep: of rows as they are measured, and of `total`."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, r: Tensor | None, total: Tensor, pairs: Pairs, given: Any
    ) -> tuple[Tensor, Tensor]:
        distance, pos_margin, neg_margin = given
        _, labels, ids, _, ref_labels, ref_ids = pairs
        columns = None if r is None or ref_labels is None else Side(r, ref_labels, ref_ids)
        shared = PairOptions(normalize=False, distance=distance)
        sides = Sides(Side(x, labels, ids), columns, shared)
        dx, dr, dtotal = (
            torch.zeros_like(of) if of is not None and wanted else None
            for of, wanted in zip((x, r, total), ctx.needs_input_grad[:3], strict=True)
        )
        n, m = len(sides.x), len(sides.r)
        ends = total.new_full((m,), -math.inf)
        ends[: min(n, m)] = total[:m]
        loss = total.new_zeros(())
        active = torch.zeros((), dtype=torch.int64, device=x.device)
        for panel in sides.panels(TEMPORARIES):
            own = total[panel.rows, None]
            other = ends.repeat(len(own), 1)
            diagonal = other[:, panel.rows.start :].diagonal()
            diagonal.fill_(-math.inf)  # an end that has the anchor's number is the anchor
            both = log_add_exp(own, other)
            none = both == -math.inf
            hinge = torch.where(none, 0, both - neg_margin) + pos_margin - panel.sim
            hinge = torch.where(panel.positive, hinge.clamp_(min=0), 0)
            loss += hinge.square().sum() / 2
            active += (hinge > 0).sum()
            if dtotal is not None:
                both = both.masked_fill_(none, math.inf)
                dtotal[panel.rows] += (hinge * (own - both).exp()).sum(1)
                dtotal[: min(n, m)] += (hinge * (other - both).exp()).sum(0)[:n]
            of_columns = dx if columns is None else dr
            sides.add_gradient(panel, -hinge, dx, of_columns)
        ctx.save_for_backward(*(d for d in (dx, dr, dtotal) if d is not None))
        ctx.wanted = tuple(d is not None for d in (dx, dr, dtotal))
        ctx.mark_non_differentiable(active)
        return loss, active

    @staticmethod
    def backward(ctx: Any, incoming: Tensor, _: None) -> tuple[Tensor | None, ...]:
        refuse_second_derivative("LiftedStructureLoss", "use pytorch_metric_learning's own class")
        saved = iter(ctx.saved_tensors)
        grads = [next(saved) * incoming if wanted else None for wanted in ctx.wanted]
        return *grads, None, None
