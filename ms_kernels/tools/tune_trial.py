"""One candidate of the tuner on a GPU: whether its results hold, and how long it takes."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from torch import Tensor

from ms_kernels.backends.interface import Side
from ms_kernels.backends.triton.finish import finish_kernel
from ms_kernels.backends.triton.gradient import gradient_kernel
from ms_kernels.backends.triton.gradient_panels import product_kernel, weights_kernel
from ms_kernels.backends.triton.gradient_stash import (
    positive_weights_kernel,
    stash_weights_kernel,
    stashed_gradient_kernel,
)
from ms_kernels.backends.triton.launch_gradient import gradient
from ms_kernels.backends.triton.launch_statistics import statistics
from ms_kernels.backends.triton.negatives import negative_scan_kernel
from ms_kernels.backends.triton.positives import positive_scan_kernel
from ms_kernels.backends.triton.problem import Problem
from ms_kernels.backends.triton.tiles import Tiles
from ms_kernels.rules.mining import NO_MINING
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import NTXent
from ms_kernels.settings import options

KERNELS = (
    *(positive_scan_kernel, negative_scan_kernel, finish_kernel),
    *(gradient_kernel, stash_weights_kernel, positive_weights_kernel),
    *(stashed_gradient_kernel, weights_kernel, product_kernel),
)
# Of each mode: rows' dtype, matmul precision, number of rows, and how far results may be apart.
WORK: dict[str, tuple[torch.dtype, str, int, float]] = {
    "half": (torch.bfloat16, "highest", 8192, 2.0**-10),
    "tf32x3": (torch.float32, "highest", 4096, 2.0**-16),
    "tf32": (torch.float32, "high", 4096, 2.0**-10),
    "float64": (torch.float64, "highest", 2048, 1e-11),
}
SCANNED_DEPTH = 512
# Without mining no rounding decides which pairs count, and every tile is visited.
SPEC = PairSpec(mining=NO_MINING)
PER_CLASS = 8


class Trial:
    """Times candidates of one mode against the standard tiles' results."""

    def __init__(self, mode: str, device: torch.device, standard: Tiles) -> None:
        self.dtype, self.precision, self.count, self.tolerance = WORK[mode]
        self.device, self.standard = device, standard
        self.wanted: dict[str, list[Tensor]] = {}
        self.known: set[int] = set()

    def time(self, tiles: Tiles, role: str) -> float | None:
        """Milliseconds of the kernels of a role; None if a candidate is out of the question."""
        with self._here():
            return self._time(tiles, role)

    def compile(self, tiles: Tiles, role: str) -> None:
        """What is wrong with a candidate shows when it is timed."""
        with contextlib.suppress(Exception), self._here():
            self._run_of(tiles, role)()

    @contextlib.contextmanager
    def _here(self) -> Iterator[None]:
        precision = torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision(self.precision)
        try:
            with torch.cuda.device(self.device):
                yield
        finally:
            torch.set_float32_matmul_precision(precision)

    def _time(self, tiles: Tiles, role: str) -> float | None:
        if role not in self.wanted:
            self.wanted[role] = self._run_of(self.standard, role)()
            self._spills()
        try:
            run = self._run_of(tiles, role)
            results = run()
            torch.cuda.synchronize()
        except Exception:  # what the compiler or the driver says: too much of something
            self._spills()
            torch.zeros(1, device=self.device).item()  # raises if the device is lost for good
            return None
        if self._spills() and tiles != self.standard:
            return None
        for got, want in zip(results, self.wanted[role], strict=True):
            scale = want.norm().clamp(min=1e-30)
            if not float((got - want).norm() / scale) <= self.tolerance:
                return None
        return float(triton.testing.do_bench(run, warmup=10, rep=50, return_mode="median"))

    def _run_of(self, tiles: Tiles, role: str) -> Callable[[], list[Tensor]]:
        """A scan gives row losses, a gradient dx."""
        deepest = max(self.standard.owner)
        depth = SCANNED_DEPTH if role in ("scan", "lean") else 4 * deepest
        if role.startswith("owner"):
            depth = int(role.removeprefix("owner"))
        generator = torch.Generator(self.device).manual_seed(depth)
        new: Any = {"generator": generator, "device": self.device}
        y = torch.arange(self.count, device=self.device) // PER_CLASS
        centres = torch.randn(self.count // PER_CLASS, depth, **new)
        x = (centres[y] + torch.randn(self.count, depth, **new)).to(self.dtype)
        # The Multi-Similarity loss has scans of its own.
        spec = PairSpec(NTXent(), NO_MINING) if role == "scan" else SPEC
        problem = Problem(Side(x, y, None), None, spec, tiles)
        budget = options.workspace_bytes
        if role in ("scan", "lean"):
            return lambda: [statistics(problem, budget, exact=False).loss]
        stash_bytes = options.stash_bytes if role == "stashed" else 0
        found = statistics(problem, budget, exact=False, stash_bytes=stash_bytes)
        terms, stash = found.terms, found.stash
        poison = torch.zeros(1, dtype=problem.rows.dtype, device=self.device)
        return lambda: [gradient(problem, terms, terms, poison, stash, budget)]

    def _spills(self) -> bool:
        """Whether a kernel that was compiled since the last look keeps values in local memory."""
        found = False
        for kernel in KERNELS:
            for compiled in kernel.device_caches[self.device.index][0].values():
                if id(compiled) not in self.known:
                    self.known.add(id(compiled))
                    found |= bool(getattr(compiled, "n_spills", 0))
        return found
