"""Calls that were checked before: the same rules and options, with tensors of the same kinds, need
no second look.

The checks take as long as the kernels of a small batch. All that they ask is in the key; what may
change between two calls of one key (autocast, transforms, the backends that are here) is asked each
time.
"""

from collections.abc import Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ms_kernels.checks import Pairs, wants_gradient
from ms_kernels.engine.autograd import means_more
from ms_kernels.engine.plans import Plans
from ms_kernels.rules.mining import Mining
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Triplet, Weighting

Tensors = tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]
Rules = tuple[Weighting, Mining]
MOST_KEPT = 256


class Known(NamedTuple):
    spec: PairSpec
    backend: str
    plans: Plans


_known: dict[Hashable, Known] = {}


def forget() -> None:
    _known.clear()


def key_of(
    tensors: Tensors, rules: Rules, options: tuple[Any, ...], counting: tuple[Any, ...]
) -> Hashable | None:
    """None of calls that are looked at each time."""
    if torch.compiler.is_compiling() or torch._C._get_tracing_state() is not None:
        return None
    if any(given is not None for given in counting):
        return None
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return None
    kinds: list[Hashable] = []
    for t in tensors:
        kind = None if t is None else _kind(t)
        if kind is None and t is not None:
            return None
        kinds.append(kind)
    # The batch as its own candidates is another call than a copy of it.
    itself = tensors[2] is tensors[0], tensors[3] is tensors[1], tensors[4] is tensors[5]
    # Candidates of another dtype may ask for no gradient.
    x, r = tensors[0], tensors[2]
    learned = r is not None and r.dtype != x.dtype and wants_gradient(r)
    # True is 1 to a dictionary, and no flag if it is given as a number.
    return rules, options, *map(type, options), *itself, learned, *kinds


def _kind(t: Tensor) -> Hashable | None:
    # A subclass may answer anything, and some have no strides.
    if means_more(t) or t.layout is not torch.strided or t.is_nested:
        return None
    device = t.device
    if device.type not in ("cpu", "cuda"):
        return None
    return t.dtype, device, t.shape, t.stride()


def known(key: Hashable | None) -> Known | None:
    try:
        return None if key is None else _known.get(key)
    except Exception:  # an option that is no number, which the checks will name; a rule of a user's
        return None


def keep(key: Hashable | None, tensors: Tensors, pairs: Pairs, found: Known) -> None:
    """Of a fused loss. Not of one whose tensors are others than those that were given, nor of
    triplets, of which labels may be looked at to choose a backend."""
    embeddings, labels, ref_emb, ref_labels, ids, ref_ids = tensors
    given = embeddings, labels, ids, ref_emb, ref_labels, ref_ids
    if key is None or any(a is not b for a, b in zip(given, pairs, strict=True)):
        return
    if isinstance(found.spec.weighting, Triplet):
        return
    if len(_known) >= MOST_KEPT:
        _known.clear()
    _known[key] = found
