"""Losses that record a derivative of their own in a forward pass, while others watch or record."""

import functools
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from torch.utils.flop_counter import FlopCounterMode

import ms_kernels
from ms_kernels import Circle, Histogram, NTXent, Triplet, pair_loss, pair_weights, streamed_loss

X = torch.randn(40, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.arange(40) % 4
CALLS = []


def own(similarity, positive, negative):
    CALLS.append(torch.is_grad_enabled())
    return torch.where(negative, similarity.exp(), 0).sum(1)


def family(rule, **options):
    return lambda x: pair_loss(x, Y, weighting=rule, **options).sum()


LOSSES = {
    "triplet": family(Triplet(), backend="panels"),
    "ntxent-none": family(NTXent(), backend="panels", reduction="none"),
    "circle": family(Circle(0.9, 256.0)),
    "ms": lambda x: ms_kernels.multi_similarity_loss(x, Y, backend="panels"),
    "histogram": family(Histogram(20)),
    "streamed": lambda x: streamed_loss(own, x, Y),
    "streamed-none": lambda x: streamed_loss(own, x, Y, reduction="none").sum(),
    "weights": lambda x: (x * pair_weights(NTXent(), x, Y).weight.sum()).sum(),
}


class Watch(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return function(*args, **(kwargs or {}))


def whole_step(mode):
    def run(loss, x):
        with mode():
            loss(x).backward()

    return run


def forward_only(loss, x):
    with Watch():
        total = loss(x)
    total.backward()


def saves(context, op, *args, **kwargs):
    kept = op in (torch.ops.aten.mm.default, torch.ops.ms_kernels.loss_and_gradient.default)
    return CheckpointPolicy.MUST_SAVE if kept else CheckpointPolicy.PREFER_RECOMPUTE


def selective(loss, x):
    contexts = functools.partial(create_selective_checkpoint_contexts, saves)
    checkpoint(loss, x, use_reentrant=False, context_fn=contexts).backward()


RUNS = {
    "watched": whole_step(Watch),
    "watched forward": forward_only,
    "flops": whole_step(lambda: FlopCounterMode(display=False)),
    "checkpoint": lambda loss, x: checkpoint(loss, x, use_reentrant=False).backward(),
    "reentrant checkpoint": lambda loss, x: checkpoint(loss, x, use_reentrant=True).backward(),
    "selective checkpoint": selective,
}


@pytest.mark.parametrize("run", RUNS)
@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_those_without_a_mode(name, run):
    want, got = X.clone().requires_grad_(), X.clone().requires_grad_()
    LOSSES[name](want).backward()
    RUNS[run](LOSSES[name], got)
    torch.testing.assert_close(got.grad, want.grad, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["ntxent-none", "histogram"])
def test_compiled_autograd(name):
    compiled_autograd = pytest.importorskip("torch._dynamo.compiled_autograd")
    torch._dynamo.reset()
    want, got = X.clone().requires_grad_(), X.clone().requires_grad_()
    LOSSES[name](want).backward()
    loss = LOSSES[name](got)
    with warnings.catch_warnings(), compiled_autograd._enable(torch.compile(backend="eager")):
        warnings.simplefilter("ignore")  # it looks at what gradients tensors have
        loss.backward()
    torch.testing.assert_close(got.grad, want.grad, rtol=1e-12, atol=1e-14)


def test_a_checkpoint_runs_a_row_loss_twice():
    """And not once more for each tensor that the derivative of a panel saves."""
    x = X.clone().requires_grad_()
    CALLS.clear()
    LOSSES["streamed"](x).backward()
    once = len(CALLS)
    CALLS.clear()
    checkpoint(LOSSES["streamed"], x, use_reentrant=False).backward()
    assert len(CALLS) == 2 * once


def test_a_watched_step_is_counted():
    """What is traced by a mode is the op, or the products of a sweep."""
    with FlopCounterMode(display=False) as counter:
        LOSSES["streamed"](X.clone().requires_grad_()).backward()
    assert counter.get_total_flops() >= 3 * 2 * 40 * 40 * 6
