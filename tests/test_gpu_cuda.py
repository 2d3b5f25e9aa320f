"""What only a GPU can show of the cuda backend; skipped without one."""

import pytest
import torch
from cases import DTYPES, SPECS, case_id, make_batch

import ms_kernels
from ms_kernels import dispatch, multi_similarity_loss, options, reference
from ms_kernels.backends import cuda as backend

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available() or dispatch.why_missing("cuda") is not None,
    reason=f"no CUDA device for the cuda backend: {dispatch.why_missing('cuda')}",
)
# (N, D) of those who train with few samples of great depth, a ragged one, and two by tiles.
SIZES = [(80, 512), (240, 4096), (97, 129), (1030, 33), (2500, 64)]
BOTH_PATHS = pytest.mark.parametrize("shape", [(240, 512), (2500, 64)], ids=case_id)


def on_device(shape, dtype=torch.float32, device="cuda", name="default"):
    n, d = shape
    x, y, _, _ = make_batch(n, None, d, SPECS[name], dtype)
    return x.to(device).requires_grad_(), y.to(device)


def step(x, y, **options):
    loss = multi_similarity_loss(x, y, backend="cuda", **options)
    return loss.detach(), torch.autograd.grad(loss.sum(), x)[0]


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", SIZES, ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined", "sharp", "raw"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_values(dtype, shape, name, reduction):
    """Against float64 on the same inputs, in units of what the dtype can hold."""
    x, y = on_device(shape, dtype, name=name)
    spec = vars(SPECS[name])
    got = step(x, y, reduction=reduction, **spec)
    wide = x.detach().double().requires_grad_()
    want = reference.multi_similarity_loss(wide, y, reduction=reduction, **spec)
    want = want.detach(), torch.autograd.grad(want.sum(), wide)[0]
    ulp = {torch.float64: 1e-11}.get(dtype, max(torch.finfo(dtype).eps, 2.0**-16))
    for g, w in zip(got, want, strict=True):
        assert (g.double() - w).abs().max() <= 4 * ulp * w.abs().max()


@pytest.mark.parametrize("shape", SIZES, ids=case_id)
def test_bits_over_runs_and_budgets(shape, monkeypatch):
    x, y = on_device(shape)
    first = step(x, y)
    for budget in (40 << 20, 0, 1 << 22):
        monkeypatch.setattr(options, "_workspace_bytes", budget)
        assert all(torch.equal(a, b) for a, b in zip(step(x, y), first, strict=True))


@BOTH_PATHS
def test_side_stream(shape):
    x, y = on_device(shape)
    want = step(x, y)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        torch.cuda._sleep(10_000_000)
        moved = (x.detach() * 1).requires_grad_()
        got = step(moved, y)
    torch.cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@BOTH_PATHS
def test_graph_capture(shape):
    x, y = on_device(shape, torch.bfloat16)
    want = step(x, y)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        step(x, y)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        got = step(x, y)
    for _ in range(3):
        graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


def test_second_device():
    if torch.cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    x, y = on_device((97, 129))
    want = step(x, y)
    other, labels = on_device((97, 129), device="cuda:1")
    got = step(other, labels)
    assert torch.cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, want, strict=True))


def test_one_launch_for_loss_and_gradient():
    x, y = on_device((240, 512))
    step(x, y)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        step(x, y)
        torch.cuda.synchronize()
    ours = [event for event in profile.events() if "batch_kernel" in event.name]
    assert len(ours) == 1


@BOTH_PATHS
def test_no_host_sync(shape):
    x, y = on_device(shape)
    step(x, y)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(x, y)
        ms_kernels.row_statistics(x, y, backend="cuda")
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_paths_agree(monkeypatch):
    """One launch by panels against tiles: the same pairs, sums in another order."""
    x, y = on_device((2500, 64), torch.float64)
    by_tiles = step(x, y)
    monkeypatch.setattr(backend, "ONE_LAUNCH", 10_000)
    for a, b in zip(by_tiles, step(x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_memory_grows_with_the_batch_not_with_its_square():
    peaks = []
    for n in (16384, 32768):
        x = torch.randn(n, 32, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        y = torch.randint(n // 4, (n,), device="cuda")
        step(x, y)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(x, y)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[1] < 2.2 * peaks[0]
