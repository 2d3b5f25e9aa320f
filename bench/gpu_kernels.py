"""ncu --profile-from-start off ... python -m bench.gpu_kernels PATH: one step of a path, profiled.

PATH is one of PATHS. What comes before the step (batches, compiling, a first run) is outside.
"""

import sys

from bench.gpu_cases import cuda_by, make_batch, ours_with
from bench.gpu_device import REHEARSED, backends, device, unfit
from bench.gpu_timing import step_of

# path: (backend, samples of a batch that one launch serves, N, D, dtype)
PATHS = {
    "batch-bfloat16": ("cuda", 1 << 30, 1024, 512, "bfloat16"),
    "tiles-bfloat16": ("cuda", 0, 4096, 512, "bfloat16"),
    "triton-bfloat16": ("triton", 0, 4096, 512, "bfloat16"),
    "batch-float32": ("cuda", 1 << 30, 1024, 512, "float32"),
    "tiles-float32": ("cuda", 0, 4096, 512, "float32"),
    "triton-float32": ("triton", 0, 4096, 512, "float32"),
}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in PATHS:
        print(f"bench.gpu_kernels: expected one of {', '.join(PATHS)}, got {' '.join(arguments)!r}")
        return 2
    if why := unfit():
        print(f"bench.gpu_kernels: {why}")
        return 2
    backend, most, n, d, dtype = PATHS[arguments[0]]
    if backend not in backends():
        backend = backends()[-1]
        if not REHEARSED:
            print(f"bench.gpu_kernels: {PATHS[arguments[0]][0]} is not built here")
            return 2
    if REHEARSED:
        n, d = 40, 16
    batch = make_batch(n, d, dtype, "mid")
    step = step_of(cuda_by(most) if backend == "cuda" else ours_with(backend), batch.x, batch.y)
    cuda = device().cuda
    for _ in range(2):
        step()
    cuda.synchronize()
    cuda.cudart().cudaProfilerStart()
    step()
    cuda.synchronize()
    cuda.cudart().cudaProfilerStop()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
