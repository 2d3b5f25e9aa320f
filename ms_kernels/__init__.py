"""Pair losses for deep metric learning, above all the Multi-Similarity loss."""

from typing import TYPE_CHECKING

from ms_kernels.api.functional import multi_similarity_loss, pair_loss, row_statistics
from ms_kernels.api.histogram import Histogram
from ms_kernels.api.inspect import PairWeights, pair_weights
from ms_kernels.api.losses import MultiSimilarityLoss
from ms_kernels.api.mining import mined_pairs
from ms_kernels.api.pair_losses import (
    BinLiftedLoss,
    BinomialDevianceLoss,
    CircleLoss,
    ContrastiveLoss,
    HistogramLoss,
    LiftedStructureLoss,
    NCALoss,
    NPairLoss,
    NTXentLoss,
    PairLoss,
    SupConLoss,
    TripletLoss,
)
from ms_kernels.api.streaming import streamed_loss
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.mining import (
    HardestMining,
    Mining,
    MultiSimilarityMining,
    NoMining,
    SemiHardMining,
    ThresholdMining,
)
from ms_kernels.rules.spec import MultiSimilaritySpec
from ms_kernels.rules.weighting import (
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
from ms_kernels.settings import options

# Type checkers do not know a package that is called.
if TYPE_CHECKING:
    from ms_kernels.backends.dispatch import backends
else:
    from ms_kernels import backends

__version__ = "0.1.0"

__all__ = [
    "BinLifted",
    "BinomialDeviance",
    "BinLiftedLoss",
    "BinomialDevianceLoss",
    "Circle",
    "CircleLoss",
    "Contrastive",
    "ContrastiveLoss",
    "HardestMining",
    "Histogram",
    "HistogramLoss",
    "LiftedStructure",
    "LiftedStructureLoss",
    "Mining",
    "MultiSimilarity",
    "MultiSimilarityLoss",
    "MultiSimilarityMining",
    "MultiSimilaritySpec",
    "NCA",
    "NCALoss",
    "NPair",
    "NPairLoss",
    "NTXent",
    "NTXentLoss",
    "NoMining",
    "PairLoss",
    "PairWeights",
    "RowStatistics",
    "SemiHardMining",
    "SupCon",
    "SupConLoss",
    "ThresholdMining",
    "Triplet",
    "TripletLoss",
    "Weighting",
    "backends",
    "mined_pairs",
    "multi_similarity_loss",
    "options",
    "pair_loss",
    "pair_weights",
    "row_statistics",
    "streamed_loss",
]
