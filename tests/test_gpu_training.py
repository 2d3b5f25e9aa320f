"""What training loops do with a loss, on a GPU: memories, processes, rows that count, compiling."""

import copy
import warnings

import pytest
import torch
import torch.distributed as dist
from on_device import BACKENDS, DEVICE, REHEARSED, clustered, cuda, host_never_waits, peak_of, tiny
from torch import nn

import ms_kernels
from bench.gpu_capture import capture
from ms_kernels import CrossBatchMemory, MultiSimilarityLoss, NTXentLoss
from ms_kernels.api import learned, unit
from ms_kernels.api.ring import Ring
from ms_kernels.distributed import DistributedLoss

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not BACKENDS, reason="there is no GPU and none is stood in for"),
]
D, SIZE = tiny(64, 12), tiny(3000, 60)
N = tiny(200, 24)
EVERY_BACKEND = pytest.mark.parametrize("backend", ["auto", *BACKENDS])


@pytest.fixture(autouse=True)
def poison():
    """None: filling what is allocated would hide what replays write."""


@pytest.fixture(autouse=True)
def as_on_a_gpu(monkeypatch):
    """Of a rehearsal's memory too nobody asks how many rows it holds."""
    if REHEARSED:
        monkeypatch.setattr(Ring, "candidates", lambda ring: (ring.rows, ring.labels, ring.ids))


def batches(count, dtype=torch.float32, n=N):
    for step in range(count):
        x, y = clustered(n + step, D, dtype, n // 4)
        yield x[:n].contiguous(), y[:n].contiguous()


def memory_of(backend, dtype=torch.float32, size=SIZE):
    loss = MultiSimilarityLoss(backend=backend)
    return CrossBatchMemory(loss, D, size, dtype=dtype).to(DEVICE)


def steps(memory, given):
    """Losses and gradients of a run, and what the memory held at its end."""
    found = []
    for x, y in given:
        leaf = x.detach().requires_grad_()
        loss = memory(leaf, y)
        found += [loss.detach(), *torch.autograd.grad(loss, leaf)]
    return [*found, memory.ring.rows, memory.ring.labels, memory.ring.ids]


@EVERY_BACKEND
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_memory_that_fills_is_as_on_the_cpu(backend, dtype):
    """Twenty steps of 200 rows: the memory is filled after fifteen and then turns over."""
    count = tiny(20, 4)
    memory = memory_of(backend, dtype)
    got = steps(memory, batches(count))
    exact = CrossBatchMemory(MultiSimilarityLoss(backend="reference"), D, SIZE, dtype=dtype)
    want = steps(exact, ((x.cpu(), y.cpu()) for x, y in batches(count)))
    tolerance = 2e-2 if dtype == torch.bfloat16 else 1e-3
    for g, w in zip(got, want, strict=True):
        difference = (g.double().cpu() - w.double()).abs().max()
        assert difference <= tolerance * w.double().abs().max()


@EVERY_BACKEND
def test_a_step_of_a_memory_waits_for_nothing(backend):
    memory, given = memory_of(backend), list(batches(4))
    steps(memory, given[:2])
    with host_never_waits():
        steps(memory, given[2:])
    assert len(memory) == min(SIZE, 4 * N)


@EVERY_BACKEND
def test_a_graph_of_a_memory_goes_on_where_it_was(backend):
    """Each replay adds its batch: the ring's position is on the device."""
    first, *given = batches(6)
    x, y = (t.clone() for t in first)
    leaf, found = x.requires_grad_(), []
    memory = memory_of(backend)

    def run():
        loss = memory(leaf, y)
        found[:] = [loss.detach(), *torch.autograd.grad(loss, leaf)]

    graph = capture(cuda, run)
    memory.reset()
    plain = memory_of(backend)
    for rows, labels in given[: tiny(5, 0)]:  # a stand-in's replay computes nothing
        with torch.no_grad():
            leaf.copy_(rows)
        y.copy_(labels)
        graph.replay()
        want = steps(plain, [(rows, labels)])
        assert all(map(torch.equal, found, want[:2]))
    assert REHEARSED or torch.equal(memory.ring.rows, plain.ring.rows)


def test_a_million_rows_of_memory_take_what_they_weigh(record_property):
    rows, n, d = tiny((1 << 20, 1024, 128), (64, 16, 8))
    memory = CrossBatchMemory(MultiSimilarityLoss(), d, rows, dtype=torch.bfloat16).to(DEVICE)
    for first in range(0, rows, tiny(1 << 16, 16)):
        fresh = torch.randn(tiny(1 << 16, 16), d, device=DEVICE, dtype=torch.bfloat16)
        memory.enqueue(fresh, (first + torch.arange(len(fresh), device=DEVICE)) // 8)
    x = torch.randn(n, d, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
    y = torch.arange(n, device=DEVICE) // 8
    peak = peak_of(lambda: torch.autograd.grad(memory(x, y), x))
    record_property("peak_bytes", peak)
    assert len(memory) == rows
    assert peak < 3 * memory.ring.rows.numel() * 2 or REHEARSED


@EVERY_BACKEND
def test_rows_that_count_as_on_the_cpu_and_without_a_wait(monkeypatch, backend):
    if REHEARSED:  # a number on a CPU, which would be read, stands for one on a GPU
        monkeypatch.setattr(learned, "readable", lambda option: None)
        monkeypatch.setattr(unit, "_are_usual", lambda norm: False)
    x, y = clustered(N, D, torch.float32, N // 4)
    weight, mask = torch.rand(N, device=DEVICE), torch.arange(N, device=DEVICE) % 5 > 0
    y[::7] = -1
    scale = torch.tensor(0.2, device=DEVICE)

    def of(x, y, mask, weight, scale, backend):
        leaf, scale = x.clone().requires_grad_(), scale.clone().requires_grad_()
        options = {"ignore_label": -1, "anchor_mask": mask, "sample_weight": weight}
        options |= {"backend": backend, "return_statistics": True}
        loss, stats = ms_kernels.multi_similarity_loss(leaf, y, **options)
        learns = NTXentLoss(nn.Parameter(scale), backend=backend).to(x.device)
        other = learns(leaf, y)
        (dx,) = torch.autograd.grad(loss + other, leaf, retain_graph=True)
        (dscale,) = torch.autograd.grad(other, learns.weighting.temperature)
        return [loss.detach(), dx, other.detach(), dscale, stats.pos_kept, stats.neg_kept]

    of(x, y, mask, weight, scale, backend)
    with host_never_waits():
        got = of(x, y, mask, weight, scale, backend)
    given = [t.cpu() for t in (x, y, mask, weight, scale)]
    want = of(*given, "cpu" if ms_kernels.backends.dispatch.why_missing("cpu") is None else "auto")
    for g, w in zip(got, want, strict=True):
        assert (g.double().cpu() - w.double()).abs().max() <= 1e-3 * w.double().abs().max()


@pytest.mark.parametrize("group", ["gloo", "nccl"])
def test_a_group_of_one_process_is_the_loss_itself(group, tmp_path):
    """It sends nothing: of collectives on a GPU this says nothing."""
    if group == "nccl" and (REHEARSED or not dist.is_nccl_available()):
        pytest.skip("no NCCL here")
    dist.init_process_group(group, init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        ((x, y),) = batches(1)
        found = []
        for loss in (MultiSimilarityLoss(), DistributedLoss(MultiSimilarityLoss())):
            leaf = x.clone().requires_grad_()
            value = loss(leaf, y)
            value.backward()
            found.append((value.detach(), leaf.grad))
        for g, w in zip(*found, strict=True):
            torch.testing.assert_close(g, w, rtol=1e-3, atol=1e-6)
    finally:
        dist.destroy_process_group()


def test_head_loss_and_memory_compiled_as_a_whole():
    warnings.filterwarnings("ignore", "TensorFloat32")  # the compiler's advice
    torch._dynamo.reset()
    torch.manual_seed(0)
    head = nn.Linear(D, D).to(DEVICE)
    found = []
    for compiled in (False, True):
        net, memory = copy.deepcopy(head), memory_of("auto", size=tiny(500, 60))

        def loss_of(x, y, net=net, memory=memory):
            return memory(net(x), y)

        run = torch.compile(loss_of, fullgraph=True) if compiled and not REHEARSED else loss_of
        losses = []
        for x, y in batches(4):
            loss = run(x, y)
            loss.backward()
            losses.append(loss.detach())
        found.append([*losses, *(p.grad for p in net.parameters()), memory.ring.rows])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-3, atol=2e-4)
