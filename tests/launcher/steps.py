"""Training steps through Triton's launcher, and what each of them asked of the GPU."""

import os
from typing import NamedTuple

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import ms_kernels
from ms_kernels.backends import triton as backend

# `make launcher` compiles in full and tries everything; the suite has minutes, not hours.
FULL = os.environ.get("STAND_IN_DRIVER") == "cubin"

# Ops that hand a number from the GPU to the host, or whose result's shape depends on one.
WAITING = {
    "_local_scalar_dense",
    "item",  # as it is called below autograd, where our ops run
    "is_nonzero",
    "equal",
    "nonzero",
    "masked_select",
    "_unique2",
    "unique_dim",
    "unique_consecutive",
    "bincount",
    "repeat_interleave",
}
# Ops that launch nothing: they make views or ask for memory.
FREE = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"),
    *(
        "view",
        "_unsafe_view",
        "reshape",
        "slice",
        "select",
        "unsqueeze",
        "expand",
        "t",
        "transpose",
    ),
    *("alias", "detach", "as_strided", "split", "lift_fresh", "permute", "squeeze", "unbind"),
}


# What an op of ours calls.
WATCHED = (
    *("row_statistics", "embedding_gradient", "loss_and_gradient"),
    *("reduced_loss_and_gradient", "counted_loss"),
    *("learned_statistics", "learned_gradient"),
)


class Cost(NamedTuple):
    kernels: tuple[str, ...]  # of ours, in order
    torch_ops: tuple[str, ...]  # each a launch too
    compiled: tuple[str, ...]
    waits: tuple[str, ...]


class _Watch(TorchDispatchMode):
    """Notes every op of torch; those within an op of ours need a watch of their own there."""

    def __init__(self, ops):
        super().__init__()
        self.ops = ops

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        namespace, _, name = function._schema.name.partition("::")
        if namespace == "aten":
            name = name.rstrip("_") or name
            masks = args[1] if name in ("index", "index_put") else ()
            if any(t is not None and t.dtype in (torch.bool, torch.uint8) for t in masks):
                name = "nonzero"
            self.ops.append(name)
        return function(*args, **(kwargs or {}))


def _watched(function, ops):
    def run(*args, **options):
        with _Watch(ops):
            return function(*args, **options)

    return run


def cost_of(stand_in, run) -> Cost:
    """Runs it; kernels, torch's own launches, compilations and waits of the host.

    A copy to the host is not seen: here all tensors are there already.
    """
    stand_in.forget()
    ops: list[str] = []
    with pytest.MonkeyPatch.context() as patch, _Watch(ops):
        for name in WATCHED:
            patch.setattr(backend, name, _watched(getattr(backend, name), ops))
        run()
    assert not stand_in.refused, stand_in.refused
    waits = [name for name in ops if name in WAITING]
    waits += ["driver"] * stand_in.waits
    launched = [name for name in ops if name not in FREE]
    kernels = tuple(launch.name.removesuffix("_kernel") for launch in stand_in.launches)
    return Cost(kernels, tuple(launched), tuple(stand_in.compiled), tuple(waits))


def samples(n, classes=8):
    return torch.arange(n) % max(1, min(classes, n // 2))


def step(
    n,
    d,
    dtype=torch.bfloat16,
    loss=ms_kernels.multi_similarity_loss,
    m=None,
    ids=False,
    learn_refs=False,
    labels=None,
    **options,
):
    """A forward and backward pass of a loss function; nothing that it returns means anything."""
    x = torch.zeros(n, d, dtype=dtype, requires_grad=True)
    y = samples(n) if labels is None else labels
    if ids:
        options["ids"] = torch.arange(n)
    if m is not None:
        r = torch.zeros(m, d, dtype=dtype, requires_grad=learn_refs)
        options.update(ref_emb=r, ref_labels=samples(m))
        if ids:
            options["ref_ids"] = torch.arange(m)

    def run():
        found = loss(x, y, backend="triton", **options)
        found.backward(torch.ones_like(found))

    return run
