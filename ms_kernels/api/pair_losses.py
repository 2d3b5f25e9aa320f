"""General Pair Weighting as modules: any mining rule with any weighting rule, and the family."""

import inspect
from dataclasses import fields
from typing import Any

from torch import Tensor, nn

from ms_kernels.api.functional import check_backend, check_rules, known_by, pair_loss
from ms_kernels.api.histogram import Histogram, check_reduction
from ms_kernels.backends.dispatch import NAMES
from ms_kernels.checks import check_choice
from ms_kernels.reference import REDUCTIONS
from ms_kernels.rules.mining import Mining, NoMining
from ms_kernels.rules.spec import PairOptions, spec_of
from ms_kernels.rules.weighting import (
    NCA,
    BinLifted,
    BinomialDeviance,
    Circle,
    Contrastive,
    LiftedStructure,
    NPair,
    NTXent,
    SupCon,
    Triplet,
    Weighting,
)


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
        shared = PairOptions(max_positive_similarity=max_positive_similarity, normalize=normalize)
        check_backend(backend, *known_by(weighting, mining, spec_of(weighting, mining, shared)))
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
        *,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
    ) -> Tensor:
        """The reduced loss of (N, D) embeddings and their (N,) labels: see `pair_loss`."""
        return pair_loss(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            weighting=self.weighting,
            mining=self.mining,
            ids=ids,
            ref_ids=ref_ids,
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
