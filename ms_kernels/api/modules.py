"""Losses as modules: a weighting rule with a mining rule, and the members of the family by name."""

import inspect
from typing import Any, TypedDict

from torch import Tensor, nn
from typing_extensions import Never, Unpack

from ms_kernels.api.functional import check_rules, names_of, pair_loss
from ms_kernels.api.histogram import Histogram, check_reduction
from ms_kernels.backends.dispatch import NAMES, check_known, takers
from ms_kernels.checks import check_choice
from ms_kernels.reference import REDUCTIONS
from ms_kernels.rules.mining import Mining, MultiSimilarityMining, NoMining, mining_of
from ms_kernels.rules.spec import PairOptions, spec_of
from ms_kernels.rules.weighting import (
    NCA,
    BinLifted,
    BinomialDeviance,
    Circle,
    Contrastive,
    DecoupledContrastive,
    LiftedStructure,
    MultiSimilarity,
    NPair,
    NTXent,
    SupCon,
    Triplet,
    Weighting,
)

__all__ = [
    "BinLiftedLoss",
    "BinomialDevianceLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "DecoupledContrastiveLoss",
    "HistogramLoss",
    "LiftedStructureLoss",
    "MultiSimilarityLoss",
    "NCALoss",
    "NPairLoss",
    "NTXentLoss",
    "PairLoss",
    "SupConLoss",
    "TripletLoss",
]


class LossOptions(TypedDict, total=False):
    """What every module takes besides the options of its rule: see `PairLoss`."""

    mining: Mining | None
    max_positive_similarity: float | None
    normalize: bool
    reduction: str
    backend: str


class PairLoss(nn.Module):
    """`pair_loss` with its rules and options fixed; see there for the arguments.

    weighting: a weighting rule. mining: a mining rule; default NoMining(), which keeps every pair.
    max_positive_similarity, normalize, reduction, backend: default None, True, "mean", "auto".
    """

    def __init_subclass__(cls, rule: type[Weighting] | None = None) -> None:
        """Of a module named after a rule, help() shows the rule's formula and all options."""
        super().__init_subclass__()
        if rule is None:
            return
        own = inspect.signature(rule).parameters.values()
        shared = inspect.signature(PairLoss.__init__).parameters.values()
        others = [
            p.replace(kind=p.KEYWORD_ONLY)
            for p in shared
            if p.name not in ("self", "weighting", "unknown")
        ]
        cls.__signature__ = inspect.Signature([*own, *others])  # type: ignore[attr-defined]
        cls.__doc__ = (
            f"`PairLoss` of the weighting rule {rule.__name__}; every pair is kept unless mining\n"
            f"is given, such as mining=MultiSimilarityMining().\n\n    {rule.__doc__}"
        )

    def __init__(
        self,
        weighting: Weighting,
        mining: Mining | None = None,
        *,
        max_positive_similarity: float | None = None,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
        **unknown: Never,
    ) -> None:
        super().__init__()
        if unknown:
            known = ", ".join(inspect.signature(type(self)).parameters)
            raise TypeError(
                f"{type(self).__name__}: expected options among {known}, "
                f"got {', '.join(sorted(unknown))}"
            )
        mining = NoMining() if mining is None else mining
        check_rules(weighting, mining)
        check_choice("reduction", reduction, REDUCTIONS)
        check_reduction(weighting, reduction)
        check_choice("backend", backend, NAMES)
        shared = PairOptions(max_positive_similarity=max_positive_similarity, normalize=normalize)
        spec = spec_of(weighting, mining, shared)
        check_known(backend, spec, takers(spec), names_of(weighting, mining))
        self.weighting, self.mining = weighting, mining
        self.options: dict[str, Any] = {
            "max_positive_similarity": shared.max_positive_similarity,
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


class MultiSimilarityLoss(PairLoss):
    """`multi_similarity_loss` with its options fixed; see there for formula and arguments."""

    def __init__(
        self,
        alpha: float = MultiSimilarity.alpha,
        beta: float = MultiSimilarity.beta,
        base: float = MultiSimilarity.base,
        epsilon: float | None = MultiSimilarityMining.epsilon,
        max_positive_similarity: float | None = None,
        normalize: bool = True,
        reduction: str = "mean",
        backend: str = "auto",
    ) -> None:
        super().__init__(
            MultiSimilarity(alpha, beta, base),
            mining_of(epsilon),
            max_positive_similarity=max_positive_similarity,
            normalize=normalize,
            reduction=reduction,
            backend=backend,
        )

    @classmethod
    def paper(cls, **options: Any) -> "MultiSimilarityLoss":
        """The paper's constants: alpha 2, beta 50, base 1, epsilon 0.1."""
        return cls(**{"alpha": 2.0, "beta": 50.0, "base": 1.0, "epsilon": 0.1, **options})

    @classmethod
    def released(cls, **options: Any) -> "MultiSimilarityLoss":
        """The released code's: alpha 2, beta 40, base 0.5; positives at S >= 1 - 1e-5 dropped."""
        constants = {"alpha": 2.0, "beta": 40.0, "base": 0.5, "epsilon": 0.1}
        return cls(**{**constants, "max_positive_similarity": 1 - 1e-5, **options})


class ContrastiveLoss(PairLoss, rule=Contrastive):
    """`Contrastive` with any mining rule."""

    def __init__(
        self,
        positive_margin: float = Contrastive.positive_margin,
        negative_margin: float = Contrastive.negative_margin,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(Contrastive(positive_margin, negative_margin), **options)


class BinomialDevianceLoss(PairLoss, rule=BinomialDeviance):
    """`BinomialDeviance` with any mining rule."""

    def __init__(
        self,
        alpha: float = BinomialDeviance.alpha,
        beta: float = BinomialDeviance.beta,
        base: float = BinomialDeviance.base,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(BinomialDeviance(alpha, beta, base), **options)


class BinLiftedLoss(PairLoss, rule=BinLifted):
    """`BinLifted` with any mining rule."""

    def __init__(
        self,
        alpha: float = BinLifted.alpha,
        beta: float = BinLifted.beta,
        base: float = BinLifted.base,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(BinLifted(alpha, beta, base), **options)


class LiftedStructureLoss(PairLoss, rule=LiftedStructure):
    """`LiftedStructure` with any mining rule."""

    def __init__(
        self,
        margin: float = LiftedStructure.margin,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(LiftedStructure(margin), **options)


class TripletLoss(PairLoss, rule=Triplet):
    """`Triplet` with any mining rule."""

    def __init__(
        self,
        margin: float = Triplet.margin,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(Triplet(margin), **options)


class NPairLoss(PairLoss, rule=NPair):
    """`NPair` with any mining rule."""

    def __init__(
        self,
        temperature: float = NPair.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(NPair(temperature), **options)


class NTXentLoss(PairLoss, rule=NTXent):
    """`NTXent` with any mining rule."""

    def __init__(
        self,
        temperature: float = NTXent.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(NTXent(temperature), **options)


class DecoupledContrastiveLoss(PairLoss, rule=DecoupledContrastive):
    """`DecoupledContrastive` with any mining rule."""

    def __init__(
        self,
        temperature: float = DecoupledContrastive.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(DecoupledContrastive(temperature), **options)


class SupConLoss(PairLoss, rule=SupCon):
    """`SupCon` with any mining rule."""

    def __init__(
        self,
        temperature: float = SupCon.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(SupCon(temperature), **options)


class NCALoss(PairLoss, rule=NCA):
    """`NCA` with any mining rule."""

    def __init__(
        self,
        temperature: float = NCA.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(NCA(temperature), **options)


class CircleLoss(PairLoss, rule=Circle):
    """`Circle` with any mining rule."""

    def __init__(
        self,
        m: float = Circle.m,
        gamma: float = Circle.gamma,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(Circle(m, gamma), **options)


class HistogramLoss(PairLoss, rule=Histogram):
    """`Histogram` with any mining rule."""

    def __init__(self, bins: int = Histogram.bins, **options: Unpack[LossOptions]) -> None:
        super().__init__(Histogram(bins), **options)
