"""Pair losses for deep metric learning, above all the Multi-Similarity loss."""

from typing import TYPE_CHECKING

from ms_kernels.functional import multi_similarity_loss, pair_loss, row_statistics
from ms_kernels.histogram import Histogram
from ms_kernels.inspect import PairWeights, pair_weights
from ms_kernels.losses import MultiSimilarityLoss
from ms_kernels.mining import mined_pairs
from ms_kernels.mining_rules import (
    HardestMining,
    Mining,
    MultiSimilarityMining,
    NoMining,
    SemiHardMining,
    ThresholdMining,
)
from ms_kernels.pair_losses import (
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
from ms_kernels.reference import RowStatistics
from ms_kernels.settings import options
from ms_kernels.spec import MultiSimilaritySpec
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

# Type checkers do not know a package that is called.
if TYPE_CHECKING:
    from ms_kernels.dispatch import backends
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
