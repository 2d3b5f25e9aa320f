"""pytorch_metric_learning.losses, those that the kernels serve replaced."""

from pytorch_metric_learning.losses import *  # noqa: F403

from ms_kernels.compat.pytorch_metric_learning.losses.lifted import LiftedStructureLoss
from ms_kernels.compat.pytorch_metric_learning.losses.pairs import ContrastiveLoss, NTXentLoss
from ms_kernels.compat.pytorch_metric_learning.losses.rows import (
    CircleLoss,
    GeneralizedLiftedStructureLoss,
    MultiSimilarityLoss,
    NCALoss,
    NPairsLoss,
    SupConLoss,
)
from ms_kernels.compat.pytorch_metric_learning.losses.triplets import TripletMarginLoss
from ms_kernels.compat.pytorch_metric_learning.memory import CrossBatchMemory
from ms_kernels.compat.pytorch_metric_learning.mirror import parts_of, without_parts

REPLACED = (
    CircleLoss,
    ContrastiveLoss,
    CrossBatchMemory,
    GeneralizedLiftedStructureLoss,
    LiftedStructureLoss,
    MultiSimilarityLoss,
    NCALoss,
    NPairsLoss,
    NTXentLoss,
    SupConLoss,
    TripletMarginLoss,
)

without_parts(globals(), __name__)
__getattr__ = parts_of(__name__)
