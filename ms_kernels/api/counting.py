"""Which rows count, and how much: a label that is none, rows that are no anchors, weights."""

from typing import Any

import torch
from torch import Tensor

from ms_kernels.backends.interface import compute_dtype
from ms_kernels.checks import Pairs, check_device, plain_number
from ms_kernels.reference import IGNORED

LEAST, MOST = -(2**63), 2**63 - 1


def check_ignore_label(ignore_label: Any, labels: Tensor | None = None) -> None:
    wanted = "ignore_label: expected an integer of 64 bits or None"
    if ignore_label is None:
        return
    number = plain_number(ignore_label)
    if isinstance(number, bool) or not isinstance(number, int):
        raise TypeError(f"{wanted}, got {ignore_label!r}")
    if not LEAST <= number <= MOST:
        raise ValueError(f"{wanted}, got {ignore_label}")
    if labels is not None and labels.ndim == 2:
        raise ValueError(
            f"ignore_label: expected None with sets of labels, got {ignore_label}; give ids, with "
            "ms_kernels.IGNORED for the rows that do not count"
        )


def check_one_label(name: str, labels: Tensor) -> None:
    if labels.ndim != 1:
        raise ValueError(
            f"labels: expected shape ({labels.shape[0]},) in a {name}, got sets of labels "
            f"{tuple(labels.shape)}; pair_loss takes them"
        )


def check_rows(name: str, got: Any, x: Tensor, flags: bool) -> None:
    """One flag, or number, for each anchor."""
    kind = "bool" if flags else "a floating-point or integer dtype"
    if not isinstance(got, Tensor):
        raise TypeError(
            f"{name}: expected a tensor, got {type(got).__name__}; use torch.as_tensor({name})"
        )
    if got.is_complex() or (got.dtype == torch.bool) != flags:
        hint = f"use {name}.bool()" if flags else "anchor_mask takes flags"
        raise TypeError(f"{name}: expected {kind}, got {got.dtype}; {hint}")
    if got.shape != x.shape[:1]:
        raise ValueError(
            f"{name}: expected shape ({x.shape[0]},) to match embeddings {tuple(x.shape)}, "
            f"got {tuple(got.shape)}"
        )
    check_device(name, got, "embeddings", x)


def row_weights(
    pairs: Pairs,
    ignore_label: int | None,
    anchor_mask: Tensor | None,
    sample_weight: Tensor | None,
) -> Tensor | None:
    """(N,) in the compute dtype: what the loss of each anchor counts; None where all count 1."""
    check_ignore_label(ignore_label, pairs.labels)
    if anchor_mask is not None:
        check_rows("anchor_mask", anchor_mask, pairs.embeddings, flags=True)
    if sample_weight is not None:
        check_rows("sample_weight", sample_weight, pairs.embeddings, flags=False)
    counts = anchor_mask
    if ignore_label is not None:
        known = pairs.labels != ignore_label
        counts = known if counts is None else counts & known
    dtype = compute_dtype(pairs.embeddings)
    if counts is None:
        return None if sample_weight is None else sample_weight.to(dtype)
    if sample_weight is None:
        return counts.to(dtype)
    return torch.where(counts, sample_weight.to(dtype), 0)


def without_label(pairs: Pairs, ignore_label: int | None) -> Pairs:
    """Rows of this label are in no pair: their ids say so. What they hold is not looked at."""
    if ignore_label is None:
        return pairs
    check_ignore_label(ignore_label, pairs.labels)
    x, labels, ids, r, ref_labels, ref_ids = pairs
    own = torch.arange(labels.shape[0], device=labels.device) if ids is None else ids
    x, own = _ignored(x, own, labels == ignore_label)
    if r is None or ref_labels is None:
        return Pairs(x, labels, own, None, None, None)
    if ref_ids is None:  # no pair is a sample with itself
        ref_ids = -1 - torch.arange(ref_labels.shape[0], device=ref_labels.device)
    r, ref_ids = _ignored(r, ref_ids, ref_labels == ignore_label)
    return Pairs(x, labels, own, r, ref_labels, ref_ids)


def _ignored(x: Tensor, ids: Tensor, where: Tensor) -> tuple[Tensor, Tensor]:
    return torch.where(where[:, None], 0, x), torch.where(where, IGNORED, ids)
