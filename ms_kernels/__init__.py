"""Pair losses for deep metric learning, above all the Multi-Similarity loss."""

from ms_kernels.functional import multi_similarity_loss
from ms_kernels.losses import MultiSimilarityLoss
from ms_kernels.reference import RowStatistics, row_statistics
from ms_kernels.spec import MultiSimilaritySpec

__all__ = [
    "MultiSimilarityLoss",
    "MultiSimilaritySpec",
    "RowStatistics",
    "multi_similarity_loss",
    "row_statistics",
]
