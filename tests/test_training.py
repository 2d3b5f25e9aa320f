"""Training steps as users write them: mixed precision, a scaler, a memory, compiled whole."""

import pytest
import torch
from torch import nn

from ms_kernels import CrossBatchMemory, MultiSimilarityLoss, NTXentLoss

D = 16


def batches(count, n=48):
    generator = torch.Generator().manual_seed(0)
    centres = torch.randn(12, 24, generator=generator)
    for _ in range(count):
        y = torch.randint(12, (n,), generator=generator)
        yield centres[y] + torch.randn(n, 24, generator=generator), y


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(24, 32), nn.ReLU(), nn.Linear(32, D))


@pytest.mark.parametrize("remembers", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_mixed_precision_with_a_scaler(dtype, remembers):
    net, criterion = network(), MultiSimilarityLoss()
    if remembers:
        criterion = CrossBatchMemory(criterion, D, 200, dtype=dtype)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    losses = []
    for x, y in batches(60):
        optimizer.zero_grad()
        with torch.autocast("cpu", dtype=dtype):
            embeddings = net(x)
            loss = criterion(embeddings, y)
        assert embeddings.dtype == dtype and loss.dtype == torch.float32
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        losses.append(loss.item())
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])


def test_a_step_that_overflows_is_skipped_and_not_remembered():
    """The scaler sees the NaN, the memory does not."""
    net = network()
    memory = CrossBatchMemory(MultiSimilarityLoss(), D, 200)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    before = [p.detach().clone() for p in net.parameters()]
    (x, y), (later, z) = batches(2)
    x[3] = 1e30
    with torch.autocast("cpu", dtype=torch.float16):
        loss = memory(net(x), y)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    assert loss.isnan() and scaler.get_scale() == 4.0
    assert all(map(torch.equal, before, net.parameters()))
    assert memory(net(later), z).isfinite() and len(memory) == 47 + 48


def test_scaled_gradients_are_those_of_the_loss():
    found = []
    for scale in (1.0, 1024.0):
        net = network()
        ((x, y),) = batches(1)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = MultiSimilarityLoss()(net(x), y)
        (loss * scale).backward()
        found.append([p.grad / scale for p in net.parameters()])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=2e-2, atol=1e-5)


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
def test_head_loss_and_memory_in_one_graph(compiler):
    """Of a temperature that learns, beside a memory that fills: one graph for all steps."""
    torch._dynamo.reset()
    found = []
    for compiled in (False, True):
        net = network()
        memory = CrossBatchMemory(MultiSimilarityLoss(), D, 100)
        contrast = NTXentLoss(nn.Parameter(torch.tensor(0.2)))

        def loss_of(x, y, net=net, memory=memory, contrast=contrast):
            embeddings = net(x)
            return memory(embeddings, y) + contrast(embeddings, y)

        run = torch.compile(loss_of, fullgraph=True, backend=compiler) if compiled else loss_of
        parameters = [*net.parameters(), *contrast.parameters()]
        optimizer = torch.optim.SGD(parameters, lr=1e-2)
        losses = []
        with torch._dynamo.config.patch(error_on_recompile=True):
            for x, y in batches(5):
                optimizer.zero_grad()
                loss = run(x, y)
                loss.backward()
                optimizer.step()
                losses.append(loss.detach())
        found.append([*losses, *(p.detach() for p in parameters), memory.ring.rows])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
