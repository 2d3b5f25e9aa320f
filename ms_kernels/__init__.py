"""Pair losses for deep metric learning, above all the Multi-Similarity loss."""

import importlib
from typing import TYPE_CHECKING

from ms_kernels import retrieval
from ms_kernels.api import family
from ms_kernels.api.family import *  # noqa: F403
from ms_kernels.api.functional import multi_similarity_loss, pair_loss
from ms_kernels.api.histogram import Histogram
from ms_kernels.api.image_text import clip_loss, siglip_loss
from ms_kernels.api.inspect import PairWeights, pair_weights
from ms_kernels.api.memory import CrossBatchMemory
from ms_kernels.api.mining import mined_pairs
from ms_kernels.api.modules import MultiSimilarityLoss, PairLoss
from ms_kernels.api.statistics import row_statistics
from ms_kernels.api.streaming import streamed_loss
from ms_kernels.reference import IGNORED, RowStatistics
from ms_kernels.rules import weighting
from ms_kernels.rules.mining import (
    HardestMining,
    Mining,
    MultiSimilarityMining,
    NoMining,
    SemiHardMining,
    ThresholdMining,
    TopKMining,
)
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import *  # noqa: F403
from ms_kernels.settings import options

# Type checkers do not know a package that is called.
if TYPE_CHECKING:
    from ms_kernels.backends.dispatch import backends
else:
    from ms_kernels import backends

    def __getattr__(name: str) -> object:
        """Packages that are loaded when they are first asked for."""
        if name in ("compat", "distributed", "tools"):
            return importlib.import_module(f"ms_kernels.{name}")
        hint = ""
        if name in ("DistributedLoss", "gather_rows"):
            hint = f"; it is ms_kernels.distributed.{name}"
        elif name in ("losses", "miners", "distances", "reducers"):
            hint = f"; it is ms_kernels.compat.pytorch_metric_learning.{name}"
        raise AttributeError(f"module 'ms_kernels' has no attribute {name!r}{hint}")


__version__ = "0.1.0"

__all__ = [
    "IGNORED",
    "CrossBatchMemory",
    "HardestMining",
    "Histogram",
    "Mining",
    "MultiSimilarityLoss",
    "MultiSimilarityMining",
    "NoMining",
    "PairLoss",
    "PairSpec",
    "PairWeights",
    "RowStatistics",
    "SemiHardMining",
    "ThresholdMining",
    "TopKMining",
    "backends",
    "clip_loss",
    "mined_pairs",
    "multi_similarity_loss",
    "options",
    "pair_loss",
    "pair_weights",
    "retrieval",
    "row_statistics",
    "siglip_loss",
    "streamed_loss",
]
__all__ += family.__all__
__all__ += weighting.__all__
