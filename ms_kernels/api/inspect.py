"""The weights of chosen pairs: what General Pair Weighting says of a loss, as numbers."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.api.counting import without_label
from ms_kernels.api.hints import names_the_way
from ms_kernels.api.histogram import Histogram
from ms_kernels.api.modules import PairLoss
from ms_kernels.backends.interface import Side, compute_dtype
from ms_kernels.backends.plain.sides import Panel, Sides
from ms_kernels.backends.plain.sweep import TEMPORARIES, panel_loss
from ms_kernels.checks import check_pairs, check_rule
from ms_kernels.engine.refusals import refuse_tracing
from ms_kernels.rules.made import options_of
from ms_kernels.rules.mining import NO_MINING, Mining, kept_pairs
from ms_kernels.rules.weighting import Weighting


class PairWeights(NamedTuple):
    """Numbers for each pair of A chosen anchors with all M candidates, each of shape (A, M).

    similarity: S_ij.
    derivative: dl_i / dS_ij of the anchor's own loss, before any reduction. Below 0 the pair is
        pulled together, above 0 it is pushed apart; 0 for a pair that is not kept.
    positive, negative: bool, the pairs that mining keeps.
    weight: w_ij = |dl_i / dS_ij|, the weight of General Pair Weighting.
    """

    similarity: Tensor
    derivative: Tensor
    positive: Tensor
    negative: Tensor

    @property
    def weight(self) -> Tensor:
        return self.derivative.abs()


class Rules(NamedTuple):
    """A loss taken apart."""

    weighting: Weighting
    mining: Mining
    max_positive_similarity: float | None = None
    normalize: bool = True
    distance: str | None = None
    ignore_label: int | None = None


@names_the_way
def pair_weights(
    loss: PairLoss | Weighting,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    anchors: Tensor | Sequence[int] | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
) -> PairWeights:
    """How much each pair of some anchors weighs, w_ij = |dl_i / dS_ij|, without all N x M numbers.

    Args:
        loss: a module, with its mining and options (all but reduction and backend); or a weighting
            rule, which then takes every pair of normalised rows. Rules of your own are
            differentiated by autograd.
        embeddings (N, D), labels (N,), ref_emb (M, D), ref_labels (M,), ids, ref_ids: as in
            `multi_similarity_loss`; without ref_emb the candidates are the batch, M = N.
        anchors: (A,) rows of embeddings, in any order. Default: all N, whose result is N x M;
            on the way there is one panel.

    Returns:
        `PairWeights`, in float32 or, for float64 embeddings, float64. Mining is held fixed, as in
        the loss. An anchor without a kept pair has zeros; one with a similarity that is not finite
        has NaN.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.
        RuntimeError: in a transform of torch.func, and under torch.compile(fullgraph=True).

    Source: Wang et al., CVPR 2019, equation 3.

    >>> found = pair_weights(NTXentLoss(), embeddings, labels, anchors=[0, 7])
    >>> found.weight[0][found.negative[0]]
    """
    _refuse_graphs()
    rules = rules_of(loss)
    shared = options_of(rules.max_positive_similarity, rules.normalize, rules.distance)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids, one_dtype=False)
    index = _check_anchors(anchors, embeddings)
    pairs = without_label(pairs, rules.ignore_label)
    embeddings, ref_emb = pairs.embeddings, pairs.ref_emb
    # Not under inference mode either: its tensors have no derivative.
    with (
        torch.inference_mode(False),
        torch.no_grad(),
        torch.autocast(embeddings.device.type, enabled=False),
    ):
        own_ids = pairs.ids
        if ref_emb is not None and pairs.ref_labels is not None:
            candidates = Side(ref_emb, pairs.ref_labels, pairs.ref_ids)
        else:
            if own_ids is None:
                own_ids = torch.arange(len(embeddings), device=embeddings.device)
            candidates = Side(embeddings, pairs.labels, own_ids)
        chosen = Side(
            embeddings[index], pairs.labels[index], None if own_ids is None else own_ids[index]
        )
        shape, device = (len(index), len(candidates.labels)), embeddings.device
        numbers = [
            torch.empty(shape, dtype=compute_dtype(embeddings), device=device) for _ in range(2)
        ]
        masks = [torch.empty(shape, dtype=torch.bool, device=device) for _ in range(2)]
        found = PairWeights(*numbers, *masks)
        for panel in Sides(chosen, candidates, shared).panels(TEMPORARIES):
            positive, negative = kept_pairs(rules.mining, panel.sim, panel.positive, panel.negative)
            derivative = row_derivative(rules.weighting, panel.sim, positive, negative)
            parts = panel.sim, derivative, positive, negative
            for whole, part in zip(found, parts, strict=True):
                whole[panel.rows] = part
    return found


def _refuse_graphs() -> None:
    if torch.compiler.is_compiling():
        # Without fullgraph the compiler leaves it out of the graph.
        raise RuntimeError(
            "pair_weights: expected no torch.compile(fullgraph=True), whose graph cannot hold the "
            "derivative that is taken here; call it outside, or leave fullgraph out"
        )
    refuse_tracing("pair_weights")
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(
            "pair_weights: expected no transform of torch.func (vmap, grad, jvp), got one; it "
            "gives constants: call it before the transform"
        )


def rules_of(loss: object) -> Rules:
    """Weighting, mining and options of a loss; an error names what it may be."""
    if isinstance(loss, type) and issubclass(loss, Weighting):
        check_rule("loss", loss, Weighting)
    if isinstance(loss, Weighting):
        rules = Rules(loss, NO_MINING)
    elif isinstance(loss, PairLoss):
        rules = Rules(loss.weighting, loss.mining, *(loss.options[k] for k in Rules._fields[2:]))
    else:
        raise TypeError(
            "loss: expected a PairLoss, a MultiSimilarityLoss or a weighting rule such as NTXent(),"
            f" got {loss!r}; a function of your own becomes a rule as the row_loss of a Weighting"
        )
    if isinstance(rules.weighting, Histogram):
        raise TypeError(
            f"loss: expected one with a loss for each anchor, got {loss!r}, which is of the whole "
            "batch; its docstring has its weights"
        )
    return rules


def row_derivative(
    weighting: Weighting, similarity: Tensor, positive: Tensor, negative: Tensor
) -> Tensor:
    """dl_i / dS_ij of the loss of each row, (rows, M); NaN where a similarity is not finite."""
    panel = Panel(slice(len(similarity)), similarity, positive, negative)
    return panel_loss(weighting.row_loss, NO_MINING, panel, wanted=True, may_be_constant=True)[2]


def _check_anchors(anchors: Tensor | Sequence[int] | None, embeddings: Tensor) -> Tensor:
    n = len(embeddings)
    if anchors is None:
        return torch.arange(n, device=embeddings.device)
    wanted = f"expected rows of embeddings, integers from 0 to {n - 1}"
    try:
        index = torch.as_tensor(anchors)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(f"anchors: {wanted}, got {anchors!r}") from error
    if index.dtype == torch.bool:
        raise TypeError(f"anchors: {wanted}, got a mask; use mask.nonzero()[:, 0]")
    if index.numel() and (index.is_floating_point() or index.is_complex()):
        raise TypeError(f"anchors: {wanted}, got {index.dtype}")
    if index.ndim != 1:
        raise ValueError(f"anchors: {wanted} of shape (A,), got shape {tuple(index.shape)}")
    outside = index[(index < 0) | (index >= n)]
    if len(outside):
        raise ValueError(f"anchors: {wanted}, got {outside[0].item()}")
    return index.to(embeddings.device, torch.int64)
