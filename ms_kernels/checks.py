"""Argument checks of the public functions: each names the argument, what it got and wanted."""

import math
import numbers
import sys
from dataclasses import fields
from typing import Any, NamedTuple

import torch
from torch import Tensor

LARGEST = sys.float_info.max
LARGEST_BITS = sys.float_info.max_exp
MOST_OPTION = 1e30
PLAIN = (int, float, bool, type(None))
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class Pairs(NamedTuple):
    """Checked tensors of a call, labels and ids as int64, in the order that the ops take them.

    Labels may be sets too, (N, K) bool, which plain PyTorch alone takes.
    """

    embeddings: Tensor
    labels: Tensor
    ids: Tensor | None
    ref_emb: Tensor | None
    ref_labels: Tensor | None
    ref_ids: Tensor | None


def savable(tensor: Tensor | None) -> Tensor | None:
    """For a backward pass; one of inference mode as a copy, for autograd would refuse it."""
    if tensor is None or torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return tensor
    return tensor.clone() if tensor.is_inference() else tensor


def savable_pairs(pairs: Pairs) -> Pairs:
    return Pairs(*map(savable, pairs))  # type: ignore[arg-type]


def check_choice(name: str, got: object, wanted: tuple[str | None, ...], way_out: str = "") -> None:
    if not isinstance(got, (str, type(None))) or got not in wanted:
        known = ", ".join(map(repr, wanted))
        raise ValueError(f"{name}: expected one of {known}, got {got!r}{way_out}")


def check_number(
    name: str, value: object, above: float | None = None, optional: bool = False
) -> None:
    """Finite, above a bound if there is one, or None where that is a choice."""
    if value is None and optional:
        return
    wanted = "a finite number" if above is None else f"a finite number above {above:g}"
    wanted += " or None" if optional else ""
    if isinstance(value, Tensor):
        raise TypeError(
            f"{name}: expected {wanted}, got a tensor; use .item(), or a row_loss of your own with "
            "streamed_loss, which may learn"
        )
    value = plain_number(value)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name}: expected {wanted}, got {value!r}")
    # torch.compile has no isfinite of a symbol.
    if not -LARGEST <= value <= LARGEST or (above is not None and value <= above):
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}")


def shown(value: object) -> str:
    """What does not fill the screen: of some integers not even Python writes the digits."""
    if isinstance(value, int) and value.bit_length() > LARGEST_BITS:
        return f"one of {value.bit_length()} bits"
    return str(value)


def plain_number(value: Any) -> Any:
    """A NumPy scalar, or any real number of another kind, as Python's own; else what it is."""
    if type(value) in PLAIN or not isinstance(value, numbers.Real):
        return value
    try:
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    except OverflowError:
        return math.inf


def take_numbers(options: Any, *names: str) -> None:
    """The options of a frozen dataclass become Python's own numbers, which torch can multiply."""
    for name in names or [field.name for field in fields(options)]:
        value = getattr(options, name)
        if type(value) not in PLAIN:
            object.__setattr__(options, name, plain_number(value))


def check_option(name: str, value: Any, above_zero: bool = False) -> None:
    """A number that a float32 holds, and its inverse too where it is above 0; or one that learns,
    which is not looked at: a GPU would be waited for."""
    if isinstance(value, Tensor):
        if value.ndim != 0 or not value.is_floating_point():
            raise TypeError(
                f"{name}: expected a number or a floating-point tensor of shape (), got "
                f"{value.dtype} of shape {tuple(value.shape)}"
                + ("; use .squeeze()" if value.numel() == 1 and value.ndim else "")
            )
        return
    check_number(name, value, 0 if above_zero else None)
    least = 1 / MOST_OPTION if above_zero else -MOST_OPTION
    if not least <= value <= MOST_OPTION:
        raise ValueError(
            f"{name}: expected a number from {least:g} to {MOST_OPTION:g}, got {value:g}"
        )


def check_whole(name: str, value: Any, most: int, of: str = "", way_out: str = "") -> None:
    """An integer from 1 to `most`. of: what it counts. way_out: from a greater one."""
    wanted = f"a whole number{of} from 1 to {most}"
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name}: expected {wanted}, got {value!r}")
    if not 1 <= value <= most:
        hint = way_out if value > most else ""
        raise ValueError(f"{name}: expected {wanted}, got {shown(value)}{hint}")


def check_options(rule: Any, above_zero: tuple[str, ...] = ()) -> None:
    """Every option of a rule, a dataclass of numbers."""
    take_numbers(rule)
    for field in fields(rule):
        name = f"{type(rule).__name__}.{field.name}"
        check_option(name, getattr(rule, field.name), field.name in above_zero)


def check_rule(name: str, rule: object, base: type) -> None:
    """An instance of the base."""
    if isinstance(rule, type) and issubclass(rule, base):
        raise TypeError(f"{name}: expected a rule, got its class; use {rule.__name__}()")
    if isinstance(rule, base):
        return
    own = getattr(rule, name, None)
    if isinstance(own, base):  # a module was given
        got = type(rule).__name__
        raise TypeError(f"{name}: expected a {base.__name__} rule, got {got}; use its {own!r}")
    rules: list[type] = base.__subclasses__()
    for rule_class in rules:  # of every depth: the list grows
        rules += rule_class.__subclasses__()
    ours = [c for c in rules if c.__module__.startswith("ms_kernels") and "is_base" not in vars(c)]
    known = ", ".join(f"{c.__name__}()" for c in ours)
    raise TypeError(f"{name}: expected a {base.__name__} rule, such as {known}; got {rule!r}")


def check_flag(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{name}: expected True or False, got {value!r}")


def wants_gradient(x: Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled()


def check_pairs(
    embeddings: Tensor,
    labels: Tensor,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    ids: Tensor | None,
    ref_ids: Tensor | None,
    one_dtype: bool = True,
) -> Pairs:
    """one_dtype: whether ref_emb has to be of the dtype of embeddings even where it asks for no
    gradient."""
    # The batch itself: a row is no pair of its own, as without candidates.
    if ref_emb is embeddings and ref_labels is labels and ids is ref_ids:
        ref_emb = ref_labels = ref_ids = None
    _check_embeddings("embeddings", embeddings)
    labels = _labels("labels", labels, "embeddings", embeddings)
    if ids is not None:
        ids = _integers("ids", ids, "embeddings", embeddings)
    if isinstance(ref_emb, (tuple, list)):
        raise TypeError(
            f"ref_emb: expected a tensor, got {type(ref_emb).__name__}; mining is inside the loss: "
            "leave the miner's pairs out, and give losses other than the MS loss a rule, such as "
            "mining=MultiSimilarityMining()"
        )
    if (ref_emb is None) != (ref_labels is None):
        given, missing = ("ref_labels", "ref_emb") if ref_emb is None else ("ref_emb", "ref_labels")
        raise ValueError(f"{missing}: expected a tensor because {given} was given, got None")
    if ref_emb is None or ref_labels is None:
        if ref_ids is not None:
            raise ValueError("ref_ids: expected None without ref_emb, got a tensor")
        return Pairs(embeddings, labels, ids, None, None, None)
    _check_embeddings("ref_emb", ref_emb)
    if ref_emb.shape[1] != embeddings.shape[1]:
        raise ValueError(
            f"ref_emb: expected shape (M, {embeddings.shape[1]}) to match embeddings "
            f"{tuple(embeddings.shape)}, got {tuple(ref_emb.shape)}"
        )
    if ref_emb.dtype != embeddings.dtype and (
        one_dtype or wants_gradient(ref_emb) or ref_emb.dtype == torch.float64
    ):
        other = ""
        if not one_dtype and ref_emb.dtype != torch.float64:
            other = ", or ref_emb.detach() if it needs no gradient"
        raise TypeError(
            f"ref_emb: expected dtype {embeddings.dtype} to match embeddings, got {ref_emb.dtype}; "
            f"use ref_emb.to(embeddings.dtype){other}"
        )
    if ref_emb.device != embeddings.device:
        raise ValueError(
            f"ref_emb: expected device {embeddings.device} to match embeddings, "
            f"got {ref_emb.device}; use ref_emb.to(embeddings.device)"
        )
    ref_labels = _labels("ref_labels", ref_labels, "ref_emb", ref_emb)
    if labels.shape[1:] != ref_labels.shape[1:]:
        raise ValueError(
            f"ref_labels: expected shape {('M', *labels.shape[1:])} to match labels "
            f"{tuple(labels.shape)}, got {tuple(ref_labels.shape)}"
        )
    if (ids is None) != (ref_ids is None):
        given, missing = ("ids", "ref_ids") if ref_ids is None else ("ref_ids", "ids")
        raise ValueError(f"{missing}: expected a tensor because {given} was given, got None")
    if ref_ids is not None:
        ref_ids = _integers("ref_ids", ref_ids, "ref_emb", ref_emb)
    return Pairs(embeddings, labels, ids, ref_emb, ref_labels, ref_ids)


def _check_embeddings(name: str, x: Tensor) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(
            f"{name}: expected a tensor, got {type(x).__name__}; use torch.as_tensor({name})"
        )
    if x.dtype not in DTYPES:
        raise TypeError(
            f"{name}: expected float16, bfloat16, float32 or float64, got {x.dtype}; use .float()"
        )
    if x.is_nested:
        raise TypeError(f"{name}: expected a dense tensor, got a nested one")
    if x.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {x.layout}; use .to_dense()")
    if x.ndim != 2:
        raise ValueError(f"{name}: expected shape (N, D), got {tuple(x.shape)}")


def _labels(name: str, got: Tensor, beside: str, x: Tensor) -> Tensor:
    """One integer a row, or (N, K) flags: the labels that it has."""
    if not isinstance(got, Tensor) or got.ndim != 2 or got.dtype != torch.bool:
        return _integers(name, got, beside, x)
    if got.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name}: expected shape ({x.shape[0]}, K) to match {beside} {tuple(x.shape)}, "
            f"got {tuple(got.shape)}"
        )
    check_device(name, got, beside, x)
    return got


def check_device(name: str, got: Tensor, beside: str, x: Tensor) -> None:
    if got.device != x.device:
        raise ValueError(
            f"{name}: expected device {x.device} to match {beside}, got {got.device}; "
            f"use {name}.to({beside}.device)"
        )


def _integers(name: str, got: Tensor, beside: str, x: Tensor) -> Tensor:
    if not isinstance(got, Tensor):
        raise TypeError(
            f"{name}: expected a tensor, got {type(got).__name__}; use torch.as_tensor({name})"
        )
    no_integer = got.is_floating_point() or got.is_complex() or got.is_quantized
    if no_integer or got.dtype == torch.bool:
        raise TypeError(f"{name}: expected an integer dtype, got {got.dtype}; use .long()")
    if got.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {got.layout}; use .to_dense()")
    if got.shape != x.shape[:1]:
        way_out = ""
        if got.ndim == 2 and len(got) == len(x):
            flags = f"; use {name}.bool() if they are flags" if name.endswith("labels") else ""
            way_out = f"; use {name}.squeeze(1)" if got.shape[1] == 1 else flags
        raise ValueError(
            f"{name}: expected shape ({x.shape[0]},) to match {beside} {tuple(x.shape)}, "
            f"got {tuple(got.shape)}{way_out}"
        )
    check_device(name, got, beside, x)
    return got.to(torch.int64)  # one-to-one, so equality survives even for uint64
