"""python -m gpu_proof.first_call LOSS N D: a graph of the first call that a process makes.

No warm-up has loaded a kernel, asked how many of its blocks fit or taken memory. Exits with an
error unless the graph gives the bits of a call without one.
"""

import sys

import torch

from bench.gpu_device import REHEARSED, device
from ms_kernels import multi_similarity_loss, pair_loss
from ms_kernels.rules import weighting as weigh


def run(loss: str, n: int, d: int) -> None:
    cuda, where = device().cuda, device().type
    new = {"device": where, "dtype": torch.bfloat16}
    x, r = (torch.randn(n, d, **new).requires_grad_() for _ in range(2))
    y = torch.arange(n, device=where) % 3

    def step() -> tuple[torch.Tensor, ...]:
        if loss == "triplet":
            out = pair_loss(x, y, r, y, weighting=weigh.Triplet(), backend="cuda")
        else:
            out = multi_similarity_loss(x, y, r, y, backend="cuda")
        return out.detach(), *torch.autograd.grad(out, (x, r))

    cuda.synchronize()
    side, graph = cuda.Stream(), cuda.CUDAGraph()
    side.wait_stream(cuda.current_stream())
    with cuda.stream(side):
        graph.capture_begin()
        got = step()
        graph.capture_end()
    cuda.current_stream().wait_stream(side)
    for _ in range(2):
        if not REHEARSED:  # the stand-in does not run a graph again
            for tensor in got:
                tensor.fill_(float("nan"))
        graph.replay()
    cuda.synchronize()
    if not all(torch.equal(a, b) for a, b in zip(got, step(), strict=True)):
        sys.exit("the graph of a first call differs from a call")


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
