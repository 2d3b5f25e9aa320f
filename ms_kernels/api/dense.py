"""Losses from one N x M matrix of similarities, as autograd sees it."""

import torch
from torch import Tensor

from ms_kernels import reference
from ms_kernels.backends.interface import compute_dtype
from ms_kernels.backends.plain.sweep import row_losses
from ms_kernels.checks import Pairs
from ms_kernels.rules.mining import Mining
from ms_kernels.rules.spec import PairOptions
from ms_kernels.rules.weighting import Weighting


def dense_rows(
    pairs: Pairs, weighting: Weighting, mining: Mining, shared: PairOptions
) -> tuple[Tensor, Tensor]:
    """Loss of each anchor, in the compute dtype, and its number of kept pairs."""
    with torch.autocast(pairs.embeddings.device.type, enabled=False):
        return row_losses(weighting.row_loss, mining, *similarities_of(pairs, shared))


def similarities_of(pairs: Pairs, shared: PairOptions) -> tuple[Tensor, Tensor, Tensor]:
    """All of them in the compute dtype, and which are of positives and of negatives."""
    dtype = compute_dtype(pairs.embeddings)
    return reference.labelled_similarities(
        pairs.embeddings.to(dtype),
        pairs.labels,
        None if pairs.ref_emb is None else pairs.ref_emb.to(dtype),
        pairs.ref_labels,
        ids=pairs.ids,
        ref_ids=pairs.ref_ids,
        max_positive_similarity=shared.max_positive_similarity,
        normalize=shared.normalize,
        distance=shared.distance,
    )
