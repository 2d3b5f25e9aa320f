"""Pair losses for deep metric learning, above all the Multi-Similarity loss."""

from ms_kernels.functional import multi_similarity_loss, row_statistics
from ms_kernels.losses import MultiSimilarityLoss
from ms_kernels.mining import mined_pairs
from ms_kernels.reference import RowStatistics
from ms_kernels.settings import options
from ms_kernels.spec import MultiSimilaritySpec

# Last: the package ms_kernels.backends is loaded by now, and this name is the function.
from ms_kernels.dispatch import backends  # isort: skip

__version__ = "0.1.0"

__all__ = [
    "MultiSimilarityLoss",
    "MultiSimilaritySpec",
    "RowStatistics",
    "backends",
    "mined_pairs",
    "multi_similarity_loss",
    "options",
    "row_statistics",
]
