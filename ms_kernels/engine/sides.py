"""Both sides of checked pairs, as a backend reads them."""

from types import ModuleType

import torch

from ms_kernels.backends.interface import Side, reads
from ms_kernels.checks import Pairs


def sides_of(pairs: Pairs) -> tuple[Side, Side | None]:
    """Anchors, and candidates unless they are the anchors."""
    embeddings, labels, ids, ref_emb, ref_labels, ref_ids = pairs
    anchors = Side(embeddings, labels, ids)
    if ref_emb is None or ref_labels is None:
        return anchors, None
    return anchors, Side(ref_emb, ref_labels, ref_ids)


def in_one_dtype(pairs: Pairs) -> Pairs:
    """Both sides in the wider dtype, which rounds nothing."""
    x, labels, ids, r, ref_labels, ref_ids = pairs
    if r is None or r.dtype == x.dtype or not reads(x.dtype, r.dtype):
        return pairs
    wide = torch.promote_types(x.dtype, r.dtype)
    return Pairs(x.to(wide), labels, ids, r.to(wide), ref_labels, ref_ids)


def sides_for(module: ModuleType, pairs: Pairs) -> tuple[Side, Side | None]:
    """As that backend reads them."""
    if not getattr(module, "READS_ANY_DTYPE", False):
        pairs = in_one_dtype(pairs)
    return sides_of(pairs)
