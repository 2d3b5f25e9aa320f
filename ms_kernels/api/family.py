"""The members of the family by name: each a `PairLoss` of one weighting rule."""

from typing_extensions import Unpack

from ms_kernels.api.histogram import Histogram
from ms_kernels.api.modules import LossOptions, PairLoss
from ms_kernels.rules.sums import Option
from ms_kernels.rules.weighting import (
    NCA,
    BinLifted,
    BinomialDeviance,
    Circle,
    Contrastive,
    DecoupledContrastive,
    LiftedStructure,
    NPair,
    NTXent,
    SigLIP,
    SupCon,
    Triplet,
)

__all__ = [
    "BinLiftedLoss",
    "BinomialDevianceLoss",
    "CircleLoss",
    "ContrastiveLoss",
    "DecoupledContrastiveLoss",
    "HistogramLoss",
    "LiftedStructureLoss",
    "NCALoss",
    "NPairLoss",
    "NTXentLoss",
    "SigLIPLoss",
    "SupConLoss",
    "TripletLoss",
]


_CONTRASTIVE = """\
    Not pytorch-metric-learning's ContrastiveLoss by default, whose margins are distances and
    whose mean is of the pairs that cost something: ms_kernels.compat has that one.

"""
_LIFTED = """\
    pytorch-metric-learning's GeneralizedLiftedStructureLoss; its LiftedStructureLoss looks at
    both ends of a pair: ms_kernels.compat has that one.

"""
_TRIPLET = """\
    Not torch's TripletMarginLoss, of distances and of triplets that are given, nor
    pytorch-metric-learning's, a mean of those that cost something: ms_kernels.compat has that one.

"""


class ContrastiveLoss(PairLoss, rule=Contrastive, beside=_CONTRASTIVE):
    """`Contrastive` with any mining rule."""

    def __init__(
        self,
        positive_margin: Option = Contrastive.positive_margin,
        negative_margin: Option = Contrastive.negative_margin,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(Contrastive(positive_margin, negative_margin), **options)


class BinomialDevianceLoss(PairLoss, rule=BinomialDeviance):
    """`BinomialDeviance` with any mining rule."""

    def __init__(
        self,
        alpha: Option = BinomialDeviance.alpha,
        beta: Option = BinomialDeviance.beta,
        base: Option = BinomialDeviance.base,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(BinomialDeviance(alpha, beta, base), **options)


class BinLiftedLoss(PairLoss, rule=BinLifted):
    """`BinLifted` with any mining rule."""

    def __init__(
        self,
        alpha: Option = BinLifted.alpha,
        beta: Option = BinLifted.beta,
        base: Option = BinLifted.base,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(BinLifted(alpha, beta, base), **options)


class LiftedStructureLoss(PairLoss, rule=LiftedStructure, beside=_LIFTED):
    """`LiftedStructure` with any mining rule."""

    def __init__(
        self,
        margin: Option = LiftedStructure.margin,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(LiftedStructure(margin), **options)


class TripletLoss(PairLoss, rule=Triplet, beside=_TRIPLET):
    """`Triplet` with any mining rule."""

    def __init__(
        self,
        margin: Option = Triplet.margin,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(Triplet(margin), **options)


class NPairLoss(PairLoss, rule=NPair):
    """`NPair` with any mining rule."""

    def __init__(
        self,
        temperature: Option = NPair.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(NPair(temperature), **options)


class NTXentLoss(PairLoss, rule=NTXent):
    """`NTXent` with any mining rule."""

    def __init__(
        self,
        temperature: Option = NTXent.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(NTXent(temperature), **options)


class DecoupledContrastiveLoss(PairLoss, rule=DecoupledContrastive):
    """`DecoupledContrastive` with any mining rule."""

    def __init__(
        self,
        temperature: Option = DecoupledContrastive.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(DecoupledContrastive(temperature), **options)


class SupConLoss(PairLoss, rule=SupCon):
    """`SupCon` with any mining rule."""

    def __init__(
        self,
        temperature: Option = SupCon.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(SupCon(temperature), **options)


class NCALoss(PairLoss, rule=NCA):
    """`NCA` with any mining rule."""

    def __init__(
        self,
        temperature: Option = NCA.temperature,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(NCA(temperature), **options)


class CircleLoss(PairLoss, rule=Circle):
    """`Circle` with any mining rule."""

    def __init__(
        self,
        m: Option = Circle.m,
        gamma: Option = Circle.gamma,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(Circle(m, gamma), **options)


class SigLIPLoss(PairLoss, rule=SigLIP):
    """`SigLIP` with any mining rule."""

    def __init__(
        self,
        scale: Option = SigLIP.scale,
        bias: Option = SigLIP.bias,
        **options: Unpack[LossOptions],
    ) -> None:
        super().__init__(SigLIP(scale, bias), **options)


class HistogramLoss(PairLoss, rule=Histogram):
    """`Histogram` with any mining rule."""

    def __init__(self, bins: int = Histogram.bins, **options: Unpack[LossOptions]) -> None:
        super().__init__(Histogram(bins), **options)
