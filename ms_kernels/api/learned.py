"""Losses with an option that learns.

A temperature only scales the similarities, so it is taken into the rows: of rows divided by it the
kernels compute the loss of temperature 1, and autograd has its derivative. So is the bias of
SigLIP, as one more dimension. Other options go to the kernels as a tensor, and their derivatives
follow from what the weights of pairs add up to. Nothing asks a GPU for their values.
"""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import NamedTuple

import torch
from torch import Tensor

from ms_kernels.api.unit import scaled_rows
from ms_kernels.backends import dispatch
from ms_kernels.backends.interface import compute_dtype
from ms_kernels.checks import Pairs, savable, savable_pairs
from ms_kernels.engine.autograd import PLAIN_TENSORS
from ms_kernels.engine.counted import fused_counted_loss
from ms_kernels.reference import RowStatistics
from ms_kernels.rules.made import learned_spec_of
from ms_kernels.rules.mining import HardestMining, Mining, NoMining, TopKMining
from ms_kernels.rules.spec import PairOptions, PairSpec
from ms_kernels.rules.triplet import is_traced
from ms_kernels.rules.weighting import (
    NCA,
    Circle,
    DecoupledContrastive,
    NPair,
    NTXent,
    SigLIP,
    SupCon,
    Weighting,
)

# By these the similarities are divided, wherever they occur; these keep the same pairs of scaled
# similarities.
SCALED = (NTXent, NPair, SupCon, DecoupledContrastive, NCA)
OF_ANY_SCALE = (NoMining, HardestMining, TopKMining)
# Backends that learn options of whatever rule, if only in plain PyTorch.
OF_ANY_RULE = ("auto", "panels", "reference")


class Scaled(NamedTuple):
    """A loss of temperature 1, or of scale 1 and bias 0, whose rows have taken the options in."""

    pairs: Pairs
    weighting: Weighting
    shared: PairOptions


def takes_in(weighting: Weighting, mining: Mining, shared: PairOptions) -> bool:
    return (
        type(weighting) in (*SCALED, SigLIP)
        and type(mining) in OF_ANY_SCALE
        and shared.max_positive_similarity is None
        and shared.distance is None
    )


def may_learn(
    weighting: Weighting, mining: Mining, shared: PairOptions, backend: str = "auto"
) -> bool:
    """Whether there are kernels in which the options of these rules may learn, of that backend if
    it is one with kernels."""
    if takes_in(weighting, mining, shared):
        return True
    spec = learned_spec_of(weighting, mining, shared)
    names = tuple(dispatch.MODULES) if backend in OF_ANY_RULE else (backend,)
    return spec is not None and any(dispatch.learns(name, spec) for name in names)


def is_read_in_place(pairs: Pairs) -> bool:
    """Candidates that a temperature should not be taken into: they would be copied as unit rows."""
    r = pairs.ref_emb
    return r is not None and r.device.type == "cpu" and not r.requires_grad


def learns_in_kernels(
    pairs: Pairs, weighting: Weighting, mining: Mining, shared: PairOptions, backend: str
) -> bool:
    """Whether nothing of the candidates is looked at in the backward pass. Of a circle whose
    numbers a kernel may refuse nobody knows yet."""
    spec = learned_spec_of(weighting, mining, shared)
    if not weighting.learned or spec is None or pairs.labels.ndim != 1:
        return False
    return not isinstance(weighting, Circle) and _backend_of(pairs, spec, backend) is not None


def _backend_of(pairs: Pairs, spec: PairSpec, backend: str) -> str | None:
    x, r = pairs.embeddings, pairs.ref_emb
    samples = len(x) if r is None else max(len(x), len(r))
    return dispatch.resolve_learned(backend, x.device.type, samples, spec, x.dtype)


class Learning(NamedTuple):
    """What kernels are told of rules that learn: option_values (k,), in the order of the rule, on
    the device of the embeddings; those of the spec mean nothing."""

    spec: PairSpec
    backend: str
    option_values: Tensor


def in_kernels(
    pairs: Pairs,
    rules: tuple[Weighting, Mining],
    shared: PairOptions,
    reduction: str,
    backend: str,
    weight: Tensor | None,
) -> tuple[Tensor, RowStatistics] | None:
    """Loss and statistics by kernels that take options as tensors; None where there are none."""
    learning = learning_of(pairs, rules, shared, backend)
    if learning is None:
        return None
    spec, found, option_values = learning
    return fused_counted_loss(pairs, spec, reduction, found, weight, option_values)


def learning_of(
    pairs: Pairs, rules: tuple[Weighting, Mining], shared: PairOptions, backend: str
) -> Learning | None:
    """None where no kernels learn."""
    spec = learned_spec_of(*rules, shared)
    x = pairs.embeddings
    if spec is None or pairs.labels.ndim != 1:
        return None
    found = _backend_of(pairs, spec, backend)
    if found is None:
        return None
    if backend == "auto" and x.device.type != "cpu" and torch.compiler.is_compiling():
        found = backend  # the op, which knows the sizes, finds the one that eager mode has
    option_values = values_of(rules[0], x)
    if backend == "auto" and found == "cpu" and not is_traced():
        if dispatch.refusal(found, spec.with_numbers(option_values)) is not None:
            return None
    return Learning(spec, found, option_values)


def values_of(weighting: Weighting, x: Tensor) -> Tensor:
    """(k,) on the device of x, in the compute dtype."""
    dtype, found = compute_dtype(x), []
    for option in fields(weighting):
        value = getattr(weighting, option.name)
        if isinstance(value, Tensor):
            found.append(value.to(x.device, dtype))
        else:  # written by a kernel: a copy from the host would be waited for
            found.append(x.new_full((), value, dtype=dtype))
    return torch.stack(found)


def take_in(pairs: Pairs, weighting: Weighting, shared: PairOptions) -> Scaled:
    pairs = savable_pairs(pairs)
    _look_at(weighting)
    if isinstance(weighting, SigLIP):
        return _with_bias(pairs, weighting, shared)
    temperature = weighting.learned["temperature"]
    x, labels, ids, r, ref_labels, ref_ids = pairs
    scale = temperature.to(compute_dtype(x)).reciprocal()
    if r is None:
        x = scaled_rows(x, scale.sqrt(), shared.normalize)
    else:
        x = scaled_rows(x, scale, shared.normalize)
        r = scaled_rows(r, None, shared.normalize)
    scaled = Pairs(x, labels, ids, r, ref_labels, ref_ids)
    return Scaled(scaled, type(weighting)(1.0), PairOptions(normalize=False))  # type: ignore[call-arg]


def _look_at(weighting: Weighting) -> None:
    """Out of range options are an error where they can be read: a GPU would be waited for."""
    if is_traced():
        return
    numbers = {name: readable(value) for name, value in weighting.learned.items()}
    if None not in numbers.values():
        replace(weighting, **numbers)  # checked


def readable(option: Tensor) -> float | None:
    """Its value; None where a GPU would be waited for, or where it has none."""
    if is_traced() or type(option) not in PLAIN_TENSORS or option.device.type != "cpu":
        return None
    return float(option.detach().item())


def _with_bias(pairs: Pairs, weighting: SigLIP, shared: PairOptions) -> Scaled:
    """scale s + bias is the product of (scale x, bias) and (r, 1): of two sides, so of a batch with
    itself too."""
    x, labels, ids, r, ref_labels, ref_ids = pairs
    options = weighting.scale, weighting.bias
    scale, bias = (
        savable(torch.as_tensor(option).to(x.device, compute_dtype(x))) for option in options
    )
    assert scale is not None and bias is not None
    given = x
    x = scaled_rows(x, scale, shared.normalize)
    if r is None or ref_labels is None:
        ids = torch.arange(len(x), device=x.device) if ids is None else ids
        r, ref_labels, ref_ids = given, labels, ids
    r = scaled_rows(r, None, shared.normalize)
    x = torch.cat([x, bias.expand(len(x), 1)], 1)
    r = torch.cat([r, r.new_ones(len(r), 1)], 1)
    scaled = Pairs(x, labels, ids, r, ref_labels, ref_ids)
    return Scaled(scaled, SigLIP(1.0, 0.0), PairOptions(normalize=False))


def unscaled(stats: RowStatistics, weighting: Weighting) -> RowStatistics:
    """Of the similarities as they were: hardest pairs, and sums of similarities."""
    if isinstance(weighting, SigLIP):
        scale, bias = (
            torch.as_tensor(v).detach().to(stats.neg_sum) for v in (weighting.scale, weighting.bias)
        )
        return _hardest_by(stats, lambda most: (most - bias) / scale)
    temperature = weighting.learned["temperature"].detach().to(stats.neg_sum.dtype)
    if isinstance(weighting, (SupCon, DecoupledContrastive)):
        stats = stats._replace(pos_moment=stats.pos_moment * temperature)
    return _hardest_by(stats, lambda most: most * temperature)


def _hardest_by(stats: RowStatistics, similarity: Callable[[Tensor], Tensor]) -> RowStatistics:
    return stats._replace(
        hardest_positive=similarity(stats.hardest_positive),
        hardest_negative=similarity(stats.hardest_negative),
    )


def way_out(weighting: Weighting, backend: str) -> str:
    names = ", ".join(weighting.learned)
    return (
        f"backend: expected 'auto', 'panels' or 'reference' because {names} of {weighting!r} "
        f"learns, got {backend!r}; {_of_kernels()}"
    )


def way_out_of_statistics(weighting: Weighting, name: str = "return_statistics") -> str:
    names = ", ".join(weighting.learned)
    return (
        f"{name}: expected options that are numbers, got {weighting!r}, whose {names} "
        f"learns; {_of_kernels()}. row_statistics takes the options as numbers"
    )


def check_kept(weighting: Weighting, mining: Mining, shared: PairOptions, backend: str) -> None:
    """Of a loss that keeps its statistics: those of options that learn come from kernels."""
    if weighting.learned and backend in ("panels", "reference"):
        if not takes_in(weighting, mining, shared):
            raise ValueError(way_out_of_statistics(weighting, "keep_statistics"))


def refusal_of_values(
    x: Tensor, rules: tuple[Weighting, Mining], shared: PairOptions, backend: str
) -> str:
    """Of a loss that is computed by kernels or not at all: what they have against the options as
    they have learned to be, if it is that."""
    spec, reason = learned_spec_of(*rules, shared), None
    if spec is not None and backend in ("auto", "cpu") and x.device.type == "cpu":
        spec = spec.with_numbers(values_of(rules[0], x))
        reason = dispatch.refusal("cpu", spec)
    if spec is None or reason is None:
        return no_kernels(rules[0], backend)
    return f"{spec.weighting!r}, as it has learned to be: {reason}; bound what learns"


def no_kernels(weighting: Weighting, backend: str) -> str:
    """Of a loss that is computed by kernels or not at all."""
    names = ", ".join(weighting.learned)
    return (
        f"expected kernels in which {names} of {type(weighting).__name__} may learn, got "
        f"backend={backend!r}; use backend='auto': {_of_kernels()}"
    )


def _of_kernels() -> str:
    return (
        "options learn in the kernels of 'cpu', 'cuda' and 'triton', of rules of this package and "
        "one label a row"
    )
