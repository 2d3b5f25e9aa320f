"""Which backend runs: a pure table, and the state of this installation."""

import functools
import os
import warnings
from types import ModuleType
from typing import NamedTuple

import torch

from ms_kernels.backends import cpu, cuda, panels, triton
from ms_kernels.rules.spec import NATIVE, PairSpec
from ms_kernels.settings import ONE_LAUNCH

# Fastest first. `device` is the only one that the backend serves, None for any.
DEVICE_OF = {"cuda": "cuda", "cpu": "cpu", "triton": "cuda", "panels": None}
MODULES: dict[str, ModuleType] = {
    "cuda": cuda,
    "cpu": cpu,
    "triton": triton,
    "panels": panels,
}
NAMES = ("auto", *DEVICE_OF, "reference")
DEFAULT = PairSpec()


class Availability(NamedTuple):
    """Whether a backend can be used, and what it is or why not."""

    available: bool
    note: str


def choose(device: str, built: frozenset[str], samples: int = 0) -> str:
    """The fastest of the built backends on a device type, for `samples` on the larger side."""
    for name, only in DEVICE_OF.items():
        if name == "cuda" and samples > ONE_LAUNCH and "triton" in built:
            continue
        if name in built and only in (None, device):
            return name
    return "reference"


def resolve(
    name: str,
    device: str,
    samples: int = 0,
    known: tuple[str, ...] = tuple(DEVICE_OF),
    dtype: torch.dtype = torch.float32,
) -> str:
    """The backend that `name` stands for; an explicit one never falls back to another.

    known: the backends that know the rules, as `takers` says; dtype: of the embeddings.
    """
    if name == "auto":
        here = serving(built(device), dtype)
        on_gpu = {kernels for kernels, only in DEVICE_OF.items() if device == only == "cuda"}
        if on_gpu & frozenset(known) and not on_gpu & here:
            remark_on_panels(dtype)
        return choose(device, here & frozenset(known), samples)
    if name in DEVICE_OF:
        only = DEVICE_OF[name]
        interpreted = name == "triton" and os.environ.get("TRITON_INTERPRET") == "1"
        if only not in (None, device) and not interpreted:
            raise ValueError(
                f"backend: {name!r} expected tensors on {only}, got {device}; use backend='auto'"
            )
        reason = why_missing(name)
        if reason is not None:
            way_out = "" if "backend=" in reason else "; or use backend='panels'"
            raise ValueError(f"backend: {name!r} cannot be used here: {reason}{way_out}")
        reason = refusal(name, DEFAULT, dtype)
        if reason is not None:
            raise ValueError(f"embeddings: backend {name!r}: {reason}")
    return name


def check_known(name: str, spec: PairSpec | None, known: tuple[str, ...], own: str) -> None:
    """An explicit backend must know the rules; own: those that are not of this package."""
    if name not in DEVICE_OF or name in known:
        return
    rules = ", ".join(sorted(rule.__name__ for rule in NATIVE))
    others = ", ".join(repr(other) for other in ("auto", *known, "reference"))
    got = own if spec is None else spec.names
    raise ValueError(
        f"backend: {name!r} expected a rule that its kernels know ({rules}, with any mining rule "
        f"of this package), got {got}: {refusal(name, spec)}; use one of {others}"
    )


@functools.cache
def why_missing(name: str) -> str | None:
    """None when the backend can be used here, else why not; asked once."""
    try:
        reason: str | None = MODULES[name].missing()
    except (RuntimeError, AssertionError, torch.cuda.DeferredCudaCallError) as error:
        # What torch says in a forked process, of a broken context and of a driver that fails.
        told = str(error).strip().partition("\n")[0].rstrip(".")
        return (
            f"CUDA cannot be used in this process ({told}); start a new one, and workers that use "
            "the GPU by multiprocessing's 'spawn', not by 'fork'"
        )
    return reason


@functools.cache
def built(device: str | None = None) -> frozenset[str]:
    """Backends that can be used; with a device type only those that serve it, others unasked: to
    ask may start CUDA."""
    serving = (n for n, only in DEVICE_OF.items() if device is None or only in (None, device))
    return frozenset(name for name in serving if why_missing(name) is None)


def refusal(name: str, spec: PairSpec | None, dtype: torch.dtype | None = None) -> str | None:
    """None when the backend takes these rules, and embeddings of this dtype if one is given; else
    why not."""
    if spec is None:  # plain PyTorch takes any
        return None if name == "panels" else "it knows rules of this package only"
    reason: str | None = MODULES[name].refuses(spec, dtype)
    return reason


def takers(spec: PairSpec | None) -> tuple[str, ...]:
    """The backends that know these rules, whether or not they are here. torch.compile traces it,
    with options that it may not know."""
    if spec is None:
        return ("panels",)
    return tuple([name for name in DEVICE_OF if MODULES[name].refuses(spec, None) is None])


@functools.cache
def serving(here: frozenset[str], dtype: torch.dtype) -> frozenset[str]:
    """Those of the backends here that take embeddings of this dtype."""
    return frozenset(name for name in here if refusal(name, DEFAULT, dtype) is None)


_remarked: list[str] = []


def remark_on_panels(dtype: torch.dtype) -> None:
    """Once in a process: CUDA tensors go the slow way, why, and how to make it another."""
    if _remarked:
        return
    reasons = "; ".join(
        f"{name}: {why_missing(name) or refusal(name, DEFAULT, dtype)}"
        for name, only in DEVICE_OF.items()
        if only == "cuda"
    )
    _remarked.append(reasons)
    warnings.warn(
        "ms_kernels: neither kernels for a GPU can be used, so CUDA tensors go to 'panels', plain "
        f"PyTorch and much slower ({reasons}). backend='panels' asks for it without this warning; "
        "README has what each GPU backend needs",
        stacklevel=2,
    )


_ASKED = why_missing, built, serving


def forget() -> None:
    """Backends are asked again: a forked process cannot use its parent's CUDA."""
    for asked in _ASKED:
        asked.cache_clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget)


def backends() -> dict[str, Availability]:
    """What can be used now, what cannot and why; asked anew at every call.

    >>> ms_kernels.backends()["cpu"].available
    True
    """
    notes = {
        "cuda": "CUDA C++ kernels, one launch for small batches",
        "cpu": "fused C++ kernels for CPU tensors",
        "triton": "fused Triton kernels for CUDA tensors",
        "panels": "streaming, plain PyTorch, any device",
    }
    forget()
    found = {}
    for name in DEVICE_OF:
        reason = why_missing(name)
        found[name] = Availability(reason is None, notes[name] if reason is None else reason)
    found["reference"] = Availability(True, "dense PyTorch, O(N * M) memory, any derivative")
    return found
