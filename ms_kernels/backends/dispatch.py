"""Which backend runs: what each says of itself, and the state of this installation."""

import functools
import os
import warnings
from types import ModuleType
from typing import NamedTuple

import torch

from ms_kernels.backends import cpu, cuda, panels, triton
from ms_kernels.rules.mining import Mining
from ms_kernels.rules.spec import NATIVE, PairSpec
from ms_kernels.rules.weighting import Weighting

# Fastest first.
MODULES: dict[str, ModuleType] = {
    module.__name__.rpartition(".")[2]: module for module in (cuda, cpu, triton, panels)
}
# The only type of device that each serves, None for any.
DEVICE_OF: dict[str, str | None] = {name: module.DEVICE for name, module in MODULES.items()}
NAMES = ("auto", *MODULES, "reference")
DEFAULT = PairSpec()


class Availability(NamedTuple):
    """Whether a backend can be used, and what it is or why not."""

    available: bool
    note: str


def choose(
    device: str,
    built: frozenset[str],
    samples: int = 0,
    spec: PairSpec | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """The fastest of the built backends on a device type, for `samples` on the larger side, and for
    rules and embeddings of a dtype if they are known."""
    here = [name for name, only in DEVICE_OF.items() if name in built and only in (None, device)]
    for name in here:
        # Others serve more samples faster, but not plain PyTorch, which serves any device.
        if _is_fast(name, samples, spec, dtype) or not _others_of(device, name, here):
            return name
    return "reference"


def _is_fast(name: str, samples: int, spec: PairSpec | None, dtype: torch.dtype | None) -> bool:
    """Whether no backend behind it is faster, of those that are made for the same device."""
    module = MODULES[name]
    most: int | None = module.MOST_SAMPLES
    if most is None:
        return True
    if hasattr(module, "leaves_to_others") and module.leaves_to_others(spec):
        return False
    if hasattr(module, "fastest_at_any_size") and module.fastest_at_any_size(spec, dtype):
        return True
    return samples <= most


def as_many(samples: int) -> int:
    """The least number of samples for which `choose` is the same: a graph is compiled for all."""
    most = 0
    for module in MODULES.values():
        limit = module.MOST_SAMPLES
        if limit is not None and samples > limit and limit >= most:
            most = limit + 1
    return most


def _others_of(device: str, name: str, here: list[str]) -> bool:
    return any(other != name and DEVICE_OF[other] == device for other in here)


def resolve(
    name: str,
    device: str,
    samples: int = 0,
    spec: PairSpec | None = DEFAULT,
    dtype: torch.dtype = torch.float32,
) -> str:
    """The backend that `name` stands for; an explicit one never falls back to another.

    samples: on the larger side. spec: the rules, None for some that are not of this package.
    dtype: of the embeddings.
    """
    if name == "auto":
        found = serving(built(device), spec, dtype)
        if device == "cuda":
            remark_on_panels(found, spec, dtype)
        return choose(device, found, samples, spec, dtype)
    if name in DEVICE_OF:
        only = DEVICE_OF[name]
        if only not in (None, device) and not _interpreted(MODULES[name]):
            raise ValueError(
                f"backend: {name!r} expected tensors on {only}, got {device}; use backend='auto'"
            )
        reason = why_missing(name)
        if reason is not None:
            way_out = "" if "backend=" in reason else "; or use backend='panels'"
            raise ValueError(f"backend: {name!r} cannot be used here: {reason}{way_out}")
        if not serving(frozenset((name,)), spec, dtype):
            raise ValueError(f"embeddings: backend {name!r}: {refusal(name, spec, dtype)}")
    return name


def resolve_blocks(name: str, device: str, samples: int, spec: PairSpec, dtype: torch.dtype) -> str:
    """As `resolve`, of candidates that come a block at a time: kernels that take none leave it to
    plain PyTorch, unless they were asked for."""
    found = resolve(name, device, samples, spec, dtype)
    if takes_blocks(found, spec):
        return found
    if name != "auto":
        raise ValueError(
            f"backend: {name!r} takes no blocks of candidates with {spec.names}; use backend='auto'"
        )
    here = [k for k in MODULES if k in serving(built(device), spec, dtype)]
    ours = [k for only in (device, None) for k in here if DEVICE_OF[k] == only]
    return next(k for k in ours if takes_blocks(k, spec))


def takes_blocks(name: str, spec: PairSpec) -> bool:
    """Whether a backend joins the statistics of blocks of candidates."""
    module = MODULES.get(name)  # none of "reference"
    return module is not None and hasattr(module, "takes_blocks") and module.takes_blocks(spec)


def resolve_learned(
    name: str, device: str, samples: int, spec: PairSpec, dtype: torch.dtype
) -> str | None:
    """The backend in whose kernels options of the rules learn, the one that `choose` has; None
    where plain PyTorch has to. In a graph, whose op chooses by sizes when it runs, any of them."""
    known = [k for k in MODULES if learns(k, spec)]
    of_device = [k for k in known if DEVICE_OF[k] == device]
    if name == "auto" and len(of_device) > 1 and not torch.compiler.is_compiling():
        slow = [k for k in of_device if not _is_fast(k, samples, spec, dtype)]
        known = [k for k in known if k not in slow] + slow
    return _first_of(name, device, tuple(known), dtype)


def _first_of(name: str, device: str, known: tuple[str, ...], dtype: torch.dtype) -> str | None:
    if name != "auto":
        return resolve(name, device, 0, DEFAULT, dtype) if name in known else None
    here = serving(built(device), DEFAULT, dtype)
    return next((other for other in known if other in here), None)


# A compiled graph takes the answer as a constant: see api/road.py.
_first_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def learns(name: str, spec: PairSpec) -> bool:
    """Whether options of these rules may learn in the kernels of a backend."""
    module = MODULES.get(name)  # none of "reference"
    return module is not None and hasattr(module, "learns") and module.learns(spec)


def _interpreted(module: ModuleType) -> bool:
    return hasattr(module, "interpreted") and module.interpreted()


def check_known(name: str, spec: PairSpec | None, weighting: Weighting, mining: Mining) -> None:
    """An explicit backend must know the rules; spec: None of rules not of this package."""
    if name not in DEVICE_OF or refusal(name, spec) is None:
        return
    rules = ", ".join(sorted(rule.__name__ for rule in NATIVE))
    others = ", ".join(repr(other) for other in ("auto", *takers(spec), "reference"))
    got = names_of(weighting, mining) if spec is None else spec.names
    raise ValueError(
        f"backend: {name!r} expected a rule that its kernels know ({rules}, with any mining rule "
        f"of this package), got {got}: {refusal(name, spec)}; use one of {others}"
    )


def names_of(weighting: Weighting, mining: Mining) -> str:
    return f"{type(weighting).__name__} with {type(mining).__name__}"


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
        return None if MODULES[name].DEVICE is None else "it knows rules of this package only"
    reason: str | None = MODULES[name].refuses(spec, dtype)
    return reason


def takers(spec: PairSpec | None) -> tuple[str, ...]:
    """The backends that know these rules, whether or not they are here. torch.compile traces it,
    with options that it may not know."""
    return tuple([name for name in DEVICE_OF if refusal(name, spec) is None])


# Asked at every call, of few losses: each answer is kept while it is among the latest so many.
@functools.lru_cache(maxsize=256)
def serving(here: frozenset[str], spec: PairSpec | None, dtype: torch.dtype) -> frozenset[str]:
    """Those of the backends here that take these rules and embeddings of this dtype."""
    return frozenset(name for name in here if refusal(name, spec, dtype) is None)


_remarked: list[str] = []


def remark_on_panels(found: frozenset[str], spec: PairSpec | None, dtype: torch.dtype) -> None:
    """Once in a process: CUDA tensors go the slow way, although there are kernels for the rules,
    why, and how to make it another. found: the backends that serve them."""
    on_gpu = [name for name, only in DEVICE_OF.items() if only == "cuda"]
    if _remarked or not found.isdisjoint(on_gpu):
        return
    if all(refusal(name, spec) is not None for name in on_gpu):
        return
    reasons = "; ".join(
        f"{name}: {why_missing(name) or refusal(name, spec, dtype)}" for name in on_gpu
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
    forget()
    found = {}
    for name, module in MODULES.items():
        reason = why_missing(name)
        if reason is not None:
            found[name] = Availability(False, reason)
        else:
            note = module.note() if hasattr(module, "note") else module.NOTE
            found[name] = Availability(True, note)
    found["reference"] = Availability(True, "dense PyTorch, O(N * M) memory, any derivative")
    return found
