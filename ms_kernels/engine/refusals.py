"""Derivatives that the fused losses do not have are refused, in eager mode and in graphs.

One that is missing must never pass for zero.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

WAY_OUT = "use backend='reference'"
OWN_WAY_OUT = "use pair_loss(..., backend='reference') with a Weighting of this row_loss"


def refuse_second_derivative(name: str, way_out: str = WAY_OUT) -> None:
    # In a graph `differentiable_once` refuses it: this is traced with gradients enabled.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(
            f"{name}: this backend has no second derivative (create_graph=True); {way_out}"
        )


def refuse_transforms(
    name: str = "ms_kernels", way_out: str = WAY_OUT, **sides: Tensor | None
) -> None:
    # Under vmap a tensor hides that it requires a gradient, which would be lost in silence.
    if torch._C._functorch.peek_interpreter_stack() is not None:
        raise RuntimeError(_takes_no_part(name, way_out))
    for side, x in sides.items() if is_forward_mode() else ():
        if x is not None and has_tangent(x):
            raise RuntimeError(
                f"{side}: expected no tangent, got one: this backend has no forward-mode "
                f"derivative; {way_out}"
            )


def refuse_tracing(name: str) -> None:
    """First of all: even a check of a shape is recorded, or warned of."""
    if torch._C._get_tracing_state() is not None:
        raise RuntimeError(
            f"{name}: expected no torch.jit.trace, which would keep the size of this batch as a "
            "constant and lose the gradient; use torch.compile"
        )


def is_batch(dloss: Tensor) -> bool:
    """Whether it stands for several incoming gradients: is_grads_batched=True, or vmap."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    found: bool = functorch.is_batchedtensor(dloss) or functorch.is_legacy_batchedtensor(dloss)
    return found


def refuse_batches(name: str, dloss: Tensor, way_out: str = WAY_OUT) -> None:
    if is_batch(dloss):
        raise RuntimeError(
            f"{name}: with reduction='none' expected one gradient at a time, got a batch of them "
            f"(is_grads_batched=True, or vmap over the backward pass); give them one by one, or "
            f"{way_out}"
        )


def is_batched(x: Tensor | None) -> bool:
    """Whether a vmap, of any depth, stands for several of it."""
    if torch.compiler.is_compiling():
        return False
    functorch = torch._C._functorch
    while x is not None and functorch.is_functorch_wrapped_tensor(x):
        if functorch.is_batchedtensor(x):
            return True
        x = functorch.get_unwrapped(x)
    return False


def _takes_no_part(name: str, way_out: str = WAY_OUT) -> str:
    return (
        f"{name}: this backend has no forward-mode derivative and takes no part "
        f"in transforms of torch.func (vmap, grad, jvp); {way_out}"
    )


def has_tangent(x: Tensor) -> bool:
    """Whether it is a dual number of forward mode, in eager mode."""
    return forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]


def is_forward_mode() -> bool:
    return forward_ad._current_level >= 0


def constants() -> contextlib.AbstractContextManager[object]:
    """What is computed has no derivative, as documented: not in forward mode either."""
    # A graph's ops refuse forward mode themselves, and torch 2.6 traces no generator.
    return torch.no_grad() if torch.compiler.is_compiling() else _constants()


@contextlib.contextmanager
def _constants() -> Iterator[None]:
    with torch.no_grad(), forward_ad._set_fwd_grad_enabled(False):
        yield


def below_autograd() -> contextlib.AbstractContextManager[object]:
    """For ops whose derivative the caller has, or whose inputs ask for none: above it they look for
    one to refuse, which takes the dispatcher through Python."""
    if torch.compiler.is_compiling():
        return contextlib.nullcontext()
    return torch._C._AutoDispatchBelowAutograd()


def refuse_derivatives(library: Any, name: str) -> None:
    """Makes an op of the library an error where its inputs ask for a derivative, wherever it is
    called: in a graph it stands alone, without the checks of the public functions."""
    op = getattr(getattr(torch.ops, library.ns), name).default

    def run(keyset: Any, *args: Any, **options: Any) -> Any:
        tensors = list(_tensors((*args, *options.values())))
        asked = torch.is_grad_enabled() and any(t.requires_grad for t in tensors)
        if asked or any(map(_has_tangent, tensors)):
            raise RuntimeError(
                f"{library.ns}.{name}: this op has no derivative: it takes no part in transforms "
                f"of torch.func (vmap, grad, jvp) nor in second derivatives; {WAY_OUT}"
            )
        return _beneath(op, keyset, *args, **options)

    library.impl(name, run, "Autograd", with_keyset=True)


def differentiate_once(library: Any, name: str) -> None:
    """Makes the op (x, labels) of the library x itself, which may be differentiated once, and by no
    transform: where the rest of a graph cannot tell."""
    op = getattr(getattr(torch.ops, library.ns), name).default

    def run(keyset: Any, x: Tensor, labels: Tensor) -> Any:
        refuse_transforms(library.ns)
        if _has_tangent(x):
            raise RuntimeError(_takes_no_part(library.ns))
        if torch.is_grad_enabled() and x.requires_grad:
            return _Once.apply(x)  # type: ignore[no-untyped-call]
        return _beneath(op, keyset, x, labels)

    def batched(x: Tensor, labels: Tensor) -> Tensor:
        raise RuntimeError(_takes_no_part(library.ns))

    library.impl(name, run, "Autograd", with_keyset=True)
    library.impl(name, batched, "FuncTorchBatched")


class _Once(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, dx: Tensor) -> Tensor:
        refuse_second_derivative("ms_kernels")
        return dx


def _beneath(op: Any, keyset: Any, *args: Any, **options: Any) -> Any:
    with torch._C._AutoDispatchBelowAutograd():
        return op.redispatch(keyset & torch._C._after_autograd_keyset, *args, **options)


def _tensors(values: tuple[Any, ...]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from (t for t in value if isinstance(t, Tensor))


def _has_tangent(x: Tensor) -> bool:
    # Of the dispatcher's level: in a graph Python's count of levels is not kept.
    if not torch._C._is_fwd_grad_enabled() or not x.is_floating_point():
        return False
    return torch._VF._unpack_dual(x, level=0)[1] is not None
