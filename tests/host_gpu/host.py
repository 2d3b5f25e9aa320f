"""A step of the cuda backend as the CUDA runtime sees it: nothing is computed."""

import torch
from host_gpu.runtime import BLOCKS, LARGE, Runtime, elsewhere
from host_gpu.serve import serve

import ms_kernels

STREAM = 0x57EA3
# What a step may ask of the runtime.
ALLOWED = {
    "cudaSetDevice",
    "cudaOccupancyMaxActiveBlocksPerMultiprocessor",
    "cudaDeviceGetAttribute",
    "cudaFuncSetAttribute",
    "cudaLaunchCooperativeKernel",
    "cudaLaunchKernel",
}


def batch(n, m, d, dtype):
    sides = []
    for count in (n,) if m is None else (n, m):
        x = torch.randn(count, d).to(dtype).requires_grad_()
        sides += [x, torch.arange(count) % 7]
    return sides


class Host:
    """The backend, its work sent to a stream of a device that executes nothing."""

    def __init__(self, monkeypatch, module, path="one_launch", device=LARGE):
        self.runtime, self.device = Runtime(module), device
        # The small path asks for more than the 48 KiB that a kernel has, of the 99 KiB of an sm_86.
        self.threads, self.shared = (256, 99 << 10) if path == "small" else (128, 48 << 10)
        serve(monkeypatch, elsewhere(module, device, STREAM), path)

    def calls_of(self, run):
        """The calls that the runtime saw, as a graph of the stream was captured."""
        with self.runtime.capturing(STREAM), self.runtime.recorded() as calls:
            run()
        return calls

    def launches_of(self, run):
        """Those that launch, when each is as it must be."""
        calls = self.calls_of(run)
        assert {call.function for call in calls} <= ALLOWED
        launches = [call for call in calls if call.launches]
        for call in launches:
            assert call.stream == STREAM and call.captured == 1 and call.device == self.device
            assert 1 <= call.grid < 2**31 and call.threads == self.threads
            assert call.shared <= self.shared
            if call.function == "cudaLaunchCooperativeKernel":
                assert call.grid <= BLOCKS[self.device]
        return launches


def step(sides, reduction="mean", **chosen):
    x, y, *refs = sides
    loss = ms_kernels.multi_similarity_loss(
        x, y, *refs, reduction=reduction, backend="cuda", **chosen
    )
    loss.sum().backward()
