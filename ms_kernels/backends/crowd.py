"""Whether a triplet loss goes faster by panels, which sort the positives of an anchor."""

import torch
from torch import Tensor

from ms_kernels.checks import Pairs
from ms_kernels.rules.triplet import is_traced

# Candidates of an anchor's class, on average; docs/performance.md has the measurement.
CROWD = 1024
# Of kernels on a GPU, which take longer the more candidates a class could have. Chosen by
# reckoning: not measured on a GPU.
MOST_CANDIDATES = {"cuda": 4096, "triton": 2048}


def is_crowded(pairs: Pairs, backend: str) -> bool:
    """Whether to sort the positives, as panels do, is faster than to compare each negative with
    each of them."""
    candidates = pairs.labels if pairs.ref_labels is None else pairs.ref_labels
    if backend in MOST_CANDIDATES:  # which classes there are is not for the host to see
        return len(candidates) > MOST_CANDIDATES[backend]
    # What only stands for a tensor has no labels to look at.
    given = type(candidates) is Tensor and not is_traced()
    if backend != "cpu" or not given or len(candidates) <= CROWD or not len(pairs.labels):
        return False
    ascending = candidates.sort().values
    upto = torch.searchsorted(ascending, pairs.labels, right=True)
    of_anchors = upto - torch.searchsorted(ascending, pairs.labels)
    return float(of_anchors.double().mean()) > CROWD
