"""One pool of threads in a process, and calls from several threads at once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import ms_kernels
from ms_kernels import multi_similarity_loss

pytest.importorskip("ms_kernels._cpu")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="threads are counted in /proc")
def test_torch_and_the_kernels_share_one_pool():
    script = """
import os, torch, ms_kernels
torch.set_num_threads(2)
count = lambda: len(os.listdir("/proc/self/task"))
a = torch.randn(1500, 1500)
(a @ a).exp().sum()
before = count()
ms_kernels.multi_similarity_loss(a, torch.arange(1500) // 8, backend="cpu")
(a @ a).exp().sum()
assert count() == before, (before, count())
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_calls_from_several_threads_do_not_disturb_each_other():
    batches = [(torch.randn(300 + 10 * k, 40), torch.arange(300 + 10 * k) // 5) for k in range(8)]

    def step(batch):
        x = batch[0].clone().requires_grad_()
        loss = multi_similarity_loss(x, batch[1], backend="cpu")
        return loss.detach(), torch.autograd.grad(loss, x)[0]

    want = [step(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(3):
            for got, alone in zip(pool.map(step, batches), want, strict=True):
                assert torch.equal(got[0], alone[0]) and torch.equal(got[1], alone[1])


def test_the_number_of_threads_is_that_of_torch():
    x, y = torch.randn(600, 64), torch.arange(600) // 5
    torch.set_num_threads(1)
    one = ms_kernels.row_statistics(x, y, backend="cpu")
    torch.set_num_threads(7)  # more than the machine may have
    for a, b in zip(one, ms_kernels.row_statistics(x, y, backend="cpu"), strict=True):
        assert torch.equal(a, b)
