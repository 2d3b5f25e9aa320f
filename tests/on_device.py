"""What the tests of a GPU run on: the GPU, or in a rehearsal the CPU with stand-ins.

MSK_REHEARSAL=1 runs their code without a GPU, on tiny batches: torch.cuda is answered by
bench/gpu_stand_in.py, the CUDA kernels are executed by tests/host_gpu, the Triton kernels
interpreted. It shows that the tests run, not what a GPU does.
"""

import pytest
import torch
from cases import DTYPES as ALL_DTYPES

import ms_kernels
from bench.gpu_capture import capture, no_wait
from bench.gpu_device import REHEARSED, device
from ms_kernels.backends import dispatch

# Those that the rehearsal's CUDA kernels are built for.
DTYPES = [torch.bfloat16, torch.float32] if REHEARSED else ALL_DTYPES
cuda, DEVICE = device().cuda, device().type


def reasons() -> dict[str, str | None]:
    """Of each backend why it cannot be tested here, or None."""
    if REHEARSED:
        from gpu_proof.on_cpu import serve_all

        return serve_all()
    if not torch.cuda.is_available():
        return dict.fromkeys(("cuda", "triton"), "torch sees no CUDA device")
    return {name: dispatch.why_missing(name) for name in ("cuda", "triton")}


REASONS = reasons()
BACKENDS = [name for name, why in REASONS.items() if why is None]


def needs(backend: str):
    """The marks of a module whose tests need that backend on a GPU."""
    why = REASONS[backend]
    return [pytest.mark.gpu, pytest.mark.skipif(why is not None, reason=f"{backend}: {why}")]


def tiny(real, rehearsed):
    """A size, a shape or a list of them: of the GPU, and of a rehearsal."""
    return rehearsed if REHEARSED else real


def host_never_waits():
    """A wait of the host raises inside; the only place where tests set torch's debug mode."""
    return no_wait(cuda)


def clustered(n, d, dtype, classes=None):
    generator = torch.Generator(DEVICE).manual_seed(n + d)
    y = torch.randint(classes or max(1, n // 8), (n,), generator=generator, device=DEVICE)
    centres = torch.randn(n, d, generator=generator, device=DEVICE)
    return (centres[y] + torch.randn(n, d, generator=generator, device=DEVICE)).to(dtype), y


def step(x, y, backend, **chosen):
    """Loss (its sum's gradient) of one batch."""
    leaf = x.detach().requires_grad_()
    loss = ms_kernels.multi_similarity_loss(leaf, y, backend=backend, **chosen)
    (dx,) = torch.autograd.grad(loss.sum(), leaf)
    return loss.detach(), dx


def peak_of(run):
    """Bytes at the peak of a second run, beyond what is alive before it."""
    run()
    cuda.synchronize()
    cuda.empty_cache()
    before = cuda.memory_allocated()
    cuda.reset_peak_memory_stats()
    run()
    cuda.synchronize()
    return cuda.max_memory_allocated() - before


def replayed(run):
    """The outputs of a run that was captured, and what replays it."""
    found = []
    graph = capture(cuda, lambda: found.append(run()))
    return found[-1], graph.replay
