"""General Pair Weighting: any mining rule with any weighting rule, and the family as modules."""

import inspect
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn

from ms_kernels import dispatch, reference
from ms_kernels.autograd import fused_loss, in_public_dtype, reduce_rows
from ms_kernels.backends.sweep import row_losses
from ms_kernels.checks import check_choice, check_pairs, check_rule
from ms_kernels.dispatch import NAMES
from ms_kernels.functional import multi_similarity_loss, refuse_transforms
from ms_kernels.histogram import Histogram, check_reduction, histogram_loss
from ms_kernels.mining_rules import NO_MINING, Mining, MultiSimilarityMining, NoMining
from ms_kernels.ops import compute_dtype
from ms_kernels.reference import REDUCTIONS
from ms_kernels.spec import NATIVE, PairSpec, check_shared
from ms_kernels.streaming import streamed_loss
from ms_kernels.weighting_rules import (
    NCA,
    BinLifted,
    BinomialDeviance,
    Circle,
    Contrastive,
    LiftedStructure,
    MultiSimilarity,
    NPair,
    NTXent,
    SupCon,
    Triplet,
    Weighting,
)


def pair_loss(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
    weighting: Weighting,
    mining: Mining = NO_MINING,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    max_positive_similarity: float | None = None,
    normalize: bool = True,
    reduction: str = "mean",
    backend: str = "auto",
) -> Tensor:
    """A pair loss = which pairs are kept x how a kept pair is weighted.

    Args:
        weighting: a rule of `weighting_rules`, with its formula: MultiSimilarity, Contrastive,
            BinomialDeviance, BinLifted, LiftedStructure, Triplet, NPair, NTXent, SupCon, NCA,
            Circle; Histogram, whose loss is of the batch (reduction "mean" alone); or your own.
        mining: a rule of `mining_rules`: NoMining, MultiSimilarityMining, HardestMining,
            SemiHardMining, ThresholdMining; or your own. The gradient holds kept pairs fixed.
        backend: MultiSimilarity with NoMining or MultiSimilarityMining runs on every backend of
            `backends()`. Any other pair of rules of this package runs on "panels" (any device,
            O(panel * M) memory); all but Triplet also on "cpu", "cuda" and "triton", circles of
            great gamma not on all of them. Rules of your own are streamed. "reference" is dense.
            Default: the fastest.
        The rest as in `multi_similarity_loss`.

    Returns:
        The reduced loss; an anchor without a kept pair costs 0 and has no gradient.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.

    >>> pair_loss(x, y, weighting=BinomialDeviance(), mining=MultiSimilarityMining())
    """
    check_rules(weighting, mining)
    check_choice("reduction", reduction, REDUCTIONS)
    check_choice("backend", backend, NAMES)
    check_shared(max_positive_similarity, normalize)
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    tensors = (embeddings, labels, ref_emb, ref_labels)
    shared: dict[str, Any] = {
        "ids": ids,
        "ref_ids": ref_ids,
        "max_positive_similarity": max_positive_similarity,
        "normalize": normalize,
        "reduction": reduction,
    }
    if fused(weighting, mining):
        assert isinstance(weighting, MultiSimilarity)
        epsilon = mining.epsilon if isinstance(mining, MultiSimilarityMining) else None
        shared |= {"alpha": weighting.alpha, "beta": weighting.beta, "base": weighting.base}
        return multi_similarity_loss(*tensors, **shared, epsilon=epsilon, backend=backend)
    if isinstance(weighting, Histogram) and backend in ("auto", "panels", "reference"):
        dense = backend == "reference"
        return histogram_loss(weighting, *tensors, mining=mining, dense=dense, **shared)
    if backend == "reference":
        return _dense(weighting, mining, *tensors, **shared)
    if not PairSpec.packable(weighting, mining):
        _resolve(backend, embeddings.device.type, ("panels",), f"{weighting!r}, {mining!r}")
        return streamed_loss(weighting.row_loss, *tensors, mining=mining, **shared)
    spec = PairSpec(weighting, mining, max_positive_similarity, normalize)
    chosen = _resolve(backend, embeddings.device.type, spec.known_by, type(weighting).__name__)
    if chosen == "panels" and torch.compiler.is_compiling():
        # The op of a compiled graph runs where autograd, which panels need, is switched off.
        return streamed_loss(weighting.row_loss, *tensors, mining=mining, **shared)
    refuse_transforms(embeddings=embeddings, ref_emb=ref_emb)
    return in_public_dtype(fused_loss(pairs, spec, reduction, backend), embeddings)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _resolve(backend: str, device: str, known_by: tuple[str, ...], got: str) -> str:
    if backend in dispatch.ALL and backend not in known_by:
        others = ", ".join(repr(name) for name in ("auto", *known_by, "reference"))
        known = ", ".join(sorted(rule.__name__ for rule in NATIVE))
        raise ValueError(
            f"backend: {backend!r} expected a rule that its kernels know ({known}, with any mining "
            f"rule of this package; Circle by limits of gamma, with unit rows), got {got}; use one "
            f"of {others}"
        )
    return dispatch.resolve(backend, device, known_by=known_by)


def fused(weighting: Weighting, mining: Mining) -> bool:
    """Whether kernels have been written for this pair of rules."""
    return type(weighting) is MultiSimilarity and type(mining) in (NoMining, MultiSimilarityMining)


def check_rules(weighting: object, mining: object) -> None:
    check_rule("weighting", weighting, Weighting)
    check_rule("mining", mining, Mining)


def _dense(
    weighting: Weighting,
    mining: Mining,
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    ids: Tensor | None,
    ref_ids: Tensor | None,
    max_positive_similarity: float | None,
    normalize: bool,
    reduction: str,
) -> Tensor:
    pairs = check_pairs(embeddings, labels, ref_emb, ref_labels, ids, ref_ids)
    wide = compute_dtype(embeddings)
    with torch.autocast(embeddings.device.type, enabled=False):
        sim, positive, negative = reference.labelled_similarities(
            embeddings.to(wide),
            pairs.labels,
            None if pairs.ref_emb is None else pairs.ref_emb.to(wide),
            pairs.ref_labels,
            ids=pairs.ids,
            ref_ids=pairs.ref_ids,
            max_positive_similarity=max_positive_similarity,
            normalize=normalize,
        )
        rows, kept = row_losses(weighting.row_loss, mining, sim, positive, negative)
        loss = reduce_rows(rows, kept, reduction)
    return in_public_dtype(loss, embeddings)


class PairLoss(nn.Module):
    """`pair_loss` with its rules and options fixed; see there for the arguments."""

    def __init__(
        self,
        weighting: Weighting,
        mining: Mining | None = None,
        *,
        max_positive_similarity: float | None = None,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__()
        mining = NoMining() if mining is None else mining
        check_rules(weighting, mining)
        check_choice("reduction", reduction, REDUCTIONS)
        check_reduction(weighting, reduction)
        check_choice("backend", backend, NAMES)
        check_shared(max_positive_similarity, normalize)
        self.weighting, self.mining = weighting, mining
        self.options: dict[str, Any] = {
            "max_positive_similarity": max_positive_similarity,
            "normalize": normalize,
            "reduction": reduction,
            "backend": backend,
        }

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
    ) -> Tensor:
        """The reduced loss of (N, D) embeddings and their (N,) labels: see `pair_loss`."""
        return pair_loss(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            weighting=self.weighting,
            mining=self.mining,
            **self.options,
        )

    def extra_repr(self) -> str:
        options = ", ".join(f"{name}={value!r}" for name, value in self.options.items())
        return f"{self.weighting!r}, {self.mining!r}, {options}"


def _member(weighting: type[Weighting]) -> type[PairLoss]:
    """The module of a weighting rule: options of the rule first, then those of `PairLoss`."""
    names = [field.name for field in fields(weighting)]

    rule, shared = (inspect.signature(c).parameters.values() for c in (weighting, PairLoss))
    others = [p.replace(kind=p.KEYWORD_ONLY) for p in shared if p.name != "weighting"]

    class Member(PairLoss):
        def __init__(self, *args: float, **options: Any) -> None:
            own = {name: options.pop(name) for name in names if name in options}
            if unknown := options.keys() - {p.name for p in others}:
                known = ", ".join([*names, *(p.name for p in others)])
                raise TypeError(
                    f"{Member.__name__}: expected options among {known}, "
                    f"got {', '.join(sorted(unknown))}"
                )
            super().__init__(weighting(*args, **own), **options)

    Member.__signature__ = inspect.Signature([*rule, *others])  # type: ignore[attr-defined]
    Member.__name__ = Member.__qualname__ = f"{weighting.__name__}Loss"
    Member.__doc__ = (
        f"`PairLoss` of the weighting rule {weighting.__name__}; every pair is kept unless mining\n"
        f"is given, such as mining=MultiSimilarityMining().\n\n    {weighting.__doc__}"
    )
    return Member


ContrastiveLoss = _member(Contrastive)
BinomialDevianceLoss = _member(BinomialDeviance)
BinLiftedLoss = _member(BinLifted)
LiftedStructureLoss = _member(LiftedStructure)
TripletLoss = _member(Triplet)
NPairLoss = _member(NPair)
NTXentLoss = _member(NTXent)
SupConLoss = _member(SupCon)
NCALoss = _member(NCA)
CircleLoss = _member(Circle)
HistogramLoss = _member(Histogram)
