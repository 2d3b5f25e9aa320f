"""Batches made on the device, the candidates, and the check that comes before timing."""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

import ms_kernels
from bench.baselines import Loss, dense, metric_learning
from bench.cases import PER_CLASS, REGIMES, closeness
from bench.gpu_device import backends, device
from ms_kernels import reference
from ms_kernels.backends import cuda as cuda_backend
from ms_kernels.backends import dispatch

DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
# Where the dense float64 oracle takes a few GB; above it the streamed panels stand in for it.
MOST_DENSE = 8192
MOST_COUNTED = 16384
# Above it one launch for the whole batch is known to lose to tiles.
MOST_ONE_LAUNCH = 4096
# What ours may err beyond twice the dense code.
FLOOR = 2.0**-18
# The share of rows that may hold a pair which rounding carries over a threshold.
MOST_FLIPPED = 1e-3
# Baselines are not ours to judge: refused only if they compute something else.
LOOSE = {"bfloat16": 0.5, "float32": 1e-2}
OURS = ("ours", "cuda", "triton", "one_launch", "tiles", "panels")
# torch.compile as it comes, replaying a graph of its own, and that with products chosen by trial.
MODES = {
    "compiled": None,
    "replayed": "reduce-overhead",
    "autotuned": "max-autotune",
}


class Batch(NamedTuple):
    x: Tensor  # (N, D)
    y: Tensor  # (N,)
    kept: float  # the share of negatives that mining keeps


def make_batch(n: int, d: int, dtype: str, regime: str) -> Batch:
    """As bench/cases.py: classes of eight around random centres, as close as the regime says."""
    where = device().type
    generator = torch.Generator(where).manual_seed(n + d)
    near = closeness(d, REGIMES[regime][0])
    y = torch.arange(n, device=where) // PER_CLASS
    new = functools.partial(torch.randn, generator=generator, device=where)
    unit = functools.partial(torch.nn.functional.normalize, dim=1)
    x = near**0.5 * unit(new(-(-n // PER_CLASS), d))[y] + (1 - near) ** 0.5 * unit(new(n, d))
    order = torch.randperm(n, generator=generator, device=where)
    x, y = x[order].to(DTYPES[dtype]), y[order]
    # By plain PyTorch where that takes no minutes: a broken backend then costs only itself.
    counted_by = "panels" if n <= MOST_COUNTED else chosen_backend(n, dtype)
    kept = ms_kernels.row_statistics(x, y, backend=counted_by).neg_kept.sum()
    return Batch(x, y, float(kept) / (n * max(1, n - PER_CLASS)))


def ours_with(backend: str) -> Loss:
    return lambda x, y: ms_kernels.multi_similarity_loss(x, y, backend=backend)


def cuda_by(most: int) -> Loss:
    """The CUDA backend with one launch for up to `most` samples, tiles above."""

    def loss(x: Tensor, y: Tensor) -> Tensor:
        saved = cuda_backend.ONE_LAUNCH
        cuda_backend.ONE_LAUNCH = most
        try:
            return ms_kernels.multi_similarity_loss(x, y, backend="cuda")
        finally:
            cuda_backend.ONE_LAUNCH = saved

    return loss


@functools.cache
def compiled_with(compiler: str, mode: str | None = None) -> Loss:
    torch._dynamo.config.cache_size_limit = 256  # one graph for each shape
    chosen = {"backend": compiler} if mode is None or compiler != "inductor" else {"mode": mode}
    return torch.compile(reference.multi_similarity_loss, dynamic=False, **chosen)


def chosen_backend(n: int, dtype: str) -> str:
    """What `auto` takes of the backends that are measured."""
    built = frozenset(backends())
    return (
        dispatch.choose(device().type, built, n, dispatch.DEFAULT, DTYPES[dtype])
        if built != {"panels"}
        else "panels"
    )


def candidates(
    n: int, dtype: str, modes: Sequence[str], with_metric_learning: bool
) -> dict[str, Loss]:
    """Ours first, by the backend that `auto` takes; then our other backends and paths, or, of given
    modes, dense PyTorch compiled by these.

    Each is a function of embeddings and labels that returns the mean loss.
    """
    first = chosen_backend(n, dtype)
    found: dict[str, Loss] = {"ours": ours_with(first)}
    if modes:
        compiler = device().compiler
        return found | {mode: compiled_with(compiler, MODES[mode]) for mode in modes}
    found.update({name: ours_with(name) for name in backends() if name != first})
    if "cuda" in backends():
        if n <= cuda_backend.ONE_LAUNCH:
            found["tiles"] = cuda_by(0)
        elif n <= MOST_ONE_LAUNCH:
            found["one_launch"] = cuda_by(n)
    found["dense"] = dense
    if with_metric_learning:
        found["metric_learning"] = metric_learning
    return found


class Judge:
    """Compares results with float64: the norm of a gradient's error over the gradient's norm.

    A pair within rounding of a threshold is kept by one and not by the other, which changes the
    gradients of its two rows: MOST_FLIPPED of the rows, those that are furthest off, are left out.
    """

    def __init__(self, batch: Batch, dense_fits: bool) -> None:
        x, y = batch.x, batch.y
        streamed = ours_with("panels")
        oracle = dense if len(x) <= MOST_DENSE else streamed
        self.exact = _result(oracle, x.double(), y)
        same = _result(dense if dense_fits else streamed, x, y)
        self.same = self.errors(same)
        self.dtype = str(x.dtype).removeprefix("torch.")

    def errors(self, result: tuple[Tensor, Tensor]) -> tuple[float, float]:
        """Relative errors of the loss and of the gradient."""
        (loss, dx), (exact_loss, exact_dx) = result, self.exact
        of_rows = (dx.double() - exact_dx).norm(dim=1)
        kept = of_rows.sort().values[: len(of_rows) - int(len(of_rows) * MOST_FLIPPED)]
        loss_error = (loss.double() - exact_loss).abs() / exact_loss.abs().clamp(min=1e-12)
        return float(loss_error), float(kept.norm() / exact_dx.norm().clamp(min=1e-12))

    def refusal(self, name: str, result: tuple[Tensor, Tensor]) -> str | None:
        """Why a result is not timed, or None."""
        pairs = zip(("loss", "gradient"), self.errors(result), self.same, strict=True)
        for what, error, same in pairs:
            allowed = 2 * same + FLOOR if name in OURS else LOOSE[self.dtype]
            if not error <= allowed:  # so put, NaN is refused too
                return f"{what} off by {error:.1e}, allowed {allowed:.1e}"
        return None


def _result(function: Loss, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    leaf = x.detach().requires_grad_()
    loss = function(leaf, y)
    (dx,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), dx


def check_rows(batch: Batch, losses: Callable[[], Tensor], count: int = 64) -> str | None:
    """Refusal of row losses (N,) by `count` anchors against all candidates in float64."""
    x, y = batch.x, batch.y
    places = torch.arange(len(x), device=x.device)
    chosen = places[:: max(1, len(x) // count)][:count]
    parts = []
    wide = x.double()
    for some in chosen.split(8):
        parts.append(
            reference.multi_similarity_loss(
                wide[some], y[some], wide, y, ids=some, ref_ids=places, reduction="none"
            )
        )
    want = torch.cat(parts)
    error = float((losses()[chosen].double() - want).norm() / want.norm().clamp(min=1e-12))
    return None if error <= 1e-4 else f"row losses off by {error:.1e}, allowed 1.0e-04"
