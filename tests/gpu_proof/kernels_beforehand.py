"""Triton's kernels compiled beforehand for a GPU that is not here: make gpu-build KERNELS=1.

A first call on a GPU machine would spend most of its minutes compiling them, 2 to 4 s each. Under
the stand-in driver Triton compiles what the steps of the plan launch, into TRITON_CACHE_DIR; the
cache's names hold Triton's version, so another Triton compiles for itself.
"""

import contextlib
import os
import sys
import time

import torch
from stand_in_driver import install

import ms_kernels
from bench.family import members
from bench.gpu_cases import DTYPES

# Sizes are not specialised: a size for each kind of path stands for all. The largest is for the
# gradient's kernel whose rows one program has to itself, which at D = 128 smaller ones share.
SIZES, DEPTHS = (80, 1024, 4096, 16384), (512, 128)


def main() -> int:
    if "TRITON_CACHE_DIR" not in os.environ:
        raise SystemExit("kernels_beforehand: expected TRITON_CACHE_DIR to name a folder")
    stand_in = install.install()
    start = time.monotonic()
    for dtype in DTYPES.values():
        x, y = torch.zeros(1024, 128, dtype=dtype, requires_grad=True), torch.arange(1024) // 8
        memory = ms_kernels.CrossBatchMemory(
            ms_kernels.MultiSimilarityLoss(backend="triton"), 128, 65536, dtype=dtype
        )
        memory(x, y).backward()
        for member in members().values():
            with contextlib.suppress(ValueError):  # Triton's kernels do not know the rule
                member.on("triton")(x, y).backward()
        assert not stand_in.refused, stand_in.refused
        seconds = time.monotonic() - start
        print(f"memory, family, {dtype}: {len(stand_in.compiled)}, {seconds:.0f} s", flush=True)
    for d in DEPTHS:
        for dtype in DTYPES.values():
            for n in SIZES:
                x = torch.zeros(n, d, dtype=dtype, requires_grad=True)
                y = torch.arange(n) // 8
                ms_kernels.multi_similarity_loss(x, y, backend="triton").backward()
                assert not stand_in.refused, stand_in.refused
                seconds = time.monotonic() - start
                print(f"N={n} D={d} {dtype}: {len(stand_in.compiled)}, {seconds:.0f} s", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
