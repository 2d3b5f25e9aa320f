"""Whether a triplet loss goes faster by panels, which sort the positives of an anchor."""

import torch
from torch import Tensor

from ms_kernels.backends.interface import Crowd
from ms_kernels.checks import Pairs
from ms_kernels.rules.triplet import is_traced


def is_crowded(pairs: Pairs, crowd: Crowd | None) -> bool:
    """Whether to sort the positives, as panels do, is faster than to compare each negative with
    each of them.

    crowd: of the backend that would compare.
    """
    if crowd is None:
        return False
    candidates = pairs.labels if pairs.ref_labels is None else pairs.ref_labels
    if len(candidates) <= crowd.most or not crowd.of_class:
        return len(candidates) > crowd.most
    # What only stands for a tensor has no labels to look at.
    given = type(candidates) is Tensor and not is_traced()
    if not given or not len(pairs.labels):
        return False
    ascending = candidates.sort().values
    upto = torch.searchsorted(ascending, pairs.labels, right=True)
    of_anchors = upto - torch.searchsorted(ascending, pairs.labels)
    return float(of_anchors.double().mean()) > crowd.most
