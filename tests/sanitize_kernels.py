"""compute-sanitizer python -m sanitize_kernels [--backends cuda triton] [--short]: every GPU kernel
once, on ragged shapes. A line "case ..." is printed as each is done."""

import argparse
import sys

import torch

import ms_kernels
from bench.gpu_cases import cuda_by
from bench.gpu_device import REHEARSED, device
from ms_kernels import multi_similarity_loss, options
from ms_kernels.backends import dispatch
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import BinomialDeviance, MultiSimilarity

# (N, M or None, D): one row, primes, a tile and its edges, several tiles, depths past any owner.
SHAPES = [(1, None, 3), (67, None, 33), (193, None, 200), (131, 259, 96), (257, None, 521)]
# What a sanitizer with a time limit sees: both by one launch and by tiles, in two dtypes.
SHORT = [(67, None, 33), (131, 259, 96)] if not REHEARSED else [(17, None, 9)]
DTYPES = (torch.bfloat16, torch.float16, torch.float32, torch.float64)


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="sanitize_kernels", description=__doc__)
    parser.add_argument("--backends", nargs="+", default=["triton", "cuda"])
    parser.add_argument("--short", action="store_true")
    chosen = parser.parse_args(arguments)
    budget = options.workspace_bytes
    for backend in chosen.backends:
        if backend not in ms_kernels.backends.dispatch.built():
            print(f"{backend} left out: {ms_kernels.backends()[backend].note}")
            continue
        options.workspace_bytes = budget
        for n, m, d in SHORT if chosen.short else SHAPES:
            for dtype in (torch.bfloat16, torch.float32) if chosen.short else DTYPES:
                run(n, m, d, dtype, backend, thorough=not chosen.short)
        if chosen.short:
            continue
        options.workspace_bytes = 1 << 16  # several launches of the scan and several panels
        run(523, None, 300, torch.bfloat16, backend)
        run(1500, 1100, 40, torch.float32, backend)  # by tiles
        run(8501, None, 16, torch.bfloat16, backend)  # labels are sorted, not counted
    print("done")


def run(
    n: int, m: int | None, d: int, dtype: torch.dtype, backend: str, thorough: bool = True
) -> None:
    where = device().type
    torch.manual_seed(n)
    x = torch.randn(n, d, device=where).to(dtype).requires_grad_()
    y = torch.randint(max(1, n // 6), (n,), device=where)
    refs: tuple[torch.Tensor, ...] = ()
    if m is not None:
        r = torch.randn(m, d, device=where).to(dtype).requires_grad_()
        refs = (r, torch.randint(max(1, n // 6), (m,), device=where))
    rules: tuple[dict, ...] = ({}, {"epsilon": None}, {"normalize": False, "beta": 3.0})
    if backend == "cpu":
        rules += ({"distance": "euclidean", "base": -1.0}, {"distance": "squared_euclidean"})
    for chosen in rules if thorough else rules[:1]:
        for reduction in ("mean", "none"):
            loss = multi_similarity_loss(
                x, y, *refs, reduction=reduction, backend=backend, **chosen
            )
            loss.sum().backward()
    ms_kernels.row_statistics(x, y, *refs, backend=backend)
    if backend in dispatch.MODULES and dispatch.learns(backend, PairSpec()):
        learned(x, y, *refs, backend=backend)
    if backend == "cuda" and not refs:  # the path that its size would not take
        cuda_by(0)(x, y).backward()
    device().cuda.synchronize()
    print(f"case {backend} N={n} M={m} D={d} {dtype}", flush=True)


def learned(*given: torch.Tensor, backend: str) -> None:
    """Of options that learn: kernels of their own."""
    values = [torch.tensor(number, device=given[0].device) for number in (2.0, 20.0, 0.4)]
    for rule in (MultiSimilarity, BinomialDeviance):
        weighting = rule(*(value.requires_grad_() for value in values))
        ms_kernels.pair_loss(*given, weighting=weighting, backend=backend).backward()


if __name__ == "__main__":
    main(sys.argv[1:])
