"""What only a GPU can show of the cuda backend; skipped without one."""

import os
import subprocess
from pathlib import Path

import pytest
import tf32
import torch
from cases import SPECS, case_id, make_batch
from gpu_proof.on_cpu import started
from on_device import DEVICE, DTYPES, cuda, host_never_waits, needs, peak_of, replayed, tiny

import ms_kernels
from bench.gpu_timing import launched
from ms_kernels import multi_similarity_loss, options, reference
from ms_kernels.backends import cuda as backend

pytestmark = needs("cuda")
# (N, D) of those who train with few samples of great depth, a ragged one, and two by tiles.
SIZES = tiny([(80, 512), (240, 4096), (97, 129), (1030, 33), (2500, 64)], [(40, 20), (70, 33)])
BOTH = tiny([(240, 512), (2500, 64)], [(40, 20), (70, 33)])
BOTH_PATHS = pytest.mark.parametrize("shape", BOTH, ids=case_id)


def on_device(shape, dtype=torch.float32, device=DEVICE, name="default"):
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
    info = torch.finfo(dtype)
    ulp = {torch.float64: 1e-11}.get(dtype, max(info.eps, 2.0**-16))
    # Subnormal results, such as float16 gradients of 4e-6, are no nearer to each other than the
    # least number: rounding to one errs by half of it, however small the result is.
    least = info.smallest_normal * info.eps / 2
    for g, w in zip(got, want, strict=True):
        assert (g.double() - w).abs().max() <= 4 * ulp * w.abs().max() + least


@pytest.mark.parametrize("count", tiny([512, 2048], [128]))
def test_tf32_similarities_are_rounded_and_not_cut(count):
    tf32.check_similarities(tf32.statistics_by("cuda", DEVICE), count)


@pytest.mark.parametrize("reduction", ["sum", "none"])
@pytest.mark.parametrize("name", tf32.UNMINED)
@pytest.mark.parametrize(
    "shape",
    tiny(
        [(240, None, 512), (300, 700, 129), (2500, None, 64), (300, 1500, 128)],
        [(37, None, 40), (30, 70, 33)],
    ),
    ids=case_id,
)
def test_tf32_is_as_accurate_as_dense_tf32(shape, name, reduction):
    tf32.check_step(shape, name, "cuda", reduction, DEVICE)


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
    stream = cuda.Stream()
    stream.wait_stream(cuda.current_stream())
    with cuda.stream(stream):
        cuda._sleep(10_000_000)
        moved = (x.detach() * 1).requires_grad_()
        got = step(moved, y)
    cuda.current_stream().wait_stream(stream)
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@BOTH_PATHS
def test_graph_capture(shape):
    x, y = on_device(shape, torch.bfloat16)
    want = step(x, y)
    got, replay = replayed(lambda: step(x, y))
    for _ in range(3):
        replay()
    cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))


@pytest.mark.parametrize(
    ("loss", "shape"),
    tiny(
        [("ms", (240, 512)), ("ms", (2500, 64)), ("triplet", (600, 64))],
        [("ms", (40, 20)), ("ms", (70, 33)), ("triplet", (40, 20))],
    ),
)
def test_graph_of_a_first_call(loss, shape):
    """In a process of its own, which has called nothing before."""
    tests = Path(__file__).parent
    command = [*started("gpu_proof.first_call"), loss, *map(str, shape)]
    environment = {**os.environ, "PYTHONPATH": f"{tests.parent}{os.pathsep}{tests}"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]


def test_second_device():
    if cuda.device_count() < 2:
        pytest.skip("one CUDA device only")
    x, y = on_device((97, 129))
    want = step(x, y)
    other, labels = on_device((97, 129), device="cuda:1")
    got = step(other, labels)
    assert cuda.current_device() == 0
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(got, want, strict=True))


def test_one_launch_for_loss_and_gradient(record_property):
    x, y = on_device(BOTH[0])
    step(x, y)
    names = [name for name, _ in launched(lambda: step(x, y))]
    record_property("launches", names)
    assert sum("small_kernel" in name for name in names) == tiny(1, 0)  # no kernels on the CPU


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", SIZES, ids=case_id)
@pytest.mark.parametrize("weigh", [False, True], ids=["alike", "weighed"])
def test_statistics_of_a_step(dtype, shape, weigh, record_property):
    """From the launches of a plain step, to the accuracy of one."""
    x, y = on_device(shape, dtype)
    weight = torch.linspace(0.5, 2, len(y), device=DEVICE) if weigh else None
    options = {"return_statistics": True, "sample_weight": weight}

    def counted(x, **chosen):
        loss, stats = multi_similarity_loss(x, y, **options, **chosen)
        return loss.detach(), torch.autograd.grad(loss, x)[0], stats

    *got, stats = counted(x, backend="cuda")
    *want, exact = counted(x.detach().double().requires_grad_(), backend="reference")
    assert torch.equal(stats.pos_kept, exact.pos_kept)
    assert torch.equal(stats.neg_kept, exact.neg_kept)
    info = torch.finfo(dtype)
    ulp = {torch.float64: 1e-11}.get(dtype, max(info.eps, 2.0**-16))
    least = info.smallest_normal * info.eps / 2
    for g, w in zip([*got, *stats[:4]], [*want, *exact[:4]], strict=True):
        finite = w.isfinite()
        assert torch.equal(g.isfinite(), finite)
        g, w = g[finite].double(), w[finite]
        assert (g - w).abs().max() <= 4 * ulp * w.abs().max() + least
    names = [name for name, _ in launched(lambda: counted(x, backend="cuda"))]
    record_property("launches", names)
    of_one_launch = sum("small_kernel" in name or "batch_kernel" in name for name in names)
    by_tiles = sum("negative_scan_kernel" in name for name in names)
    assert (of_one_launch, by_tiles) == tiny((len(y) <= 1024, len(y) > 1024), (0, 0))


@BOTH_PATHS
def test_no_host_sync(shape):
    x, y = on_device(shape)
    step(x, y)
    with host_never_waits():
        step(x, y)
        ms_kernels.row_statistics(x, y, backend="cuda")


def test_paths_agree(monkeypatch):
    """One launch by panels against tiles: the same pairs, sums in another order."""
    x, y = on_device(BOTH[1], DTYPES[0])
    by_tiles = step(x, y)
    monkeypatch.setattr(backend, "ONE_LAUNCH", 10_000)
    rtol = 1e-10 if DTYPES[0] == torch.float64 else 2e-2
    for a, b in zip(by_tiles, step(x, y), strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=1e-3 if rtol > 1e-3 else 1e-14)


def test_memory_grows_with_the_batch_not_with_its_square(record_property):
    options.workspace_bytes = 4 << 20  # a step takes up to four of it, whatever its size
    peaks = []
    for n in tiny((16384, 32768), (40, 70)):
        x = torch.randn(n, 32, device=DEVICE, dtype=torch.bfloat16, requires_grad=True)
        y = torch.randint(n // 4, (n,), device=DEVICE)
        peaks.append(peak_of(lambda x=x, y=y: step(x, y)))
    record_property("peak_bytes", peaks)
    assert peaks[1] < 2.2 * peaks[0]


@pytest.mark.parametrize("far", [{"alpha": 1e30}, {"beta": 1e30}, {"alpha": 1e-30}], ids=str)
@pytest.mark.parametrize("shape", tiny([(97, 3), (1500, 5)], [(40, 20)]), ids=case_id)
def test_exponents_cancel_whatever_their_size(shape, far):
    """A pair that is all of its sum weighs exp(0): no compiler may fuse its product away."""
    if torch.float64 not in DTYPES:
        pytest.skip("these kernels are not built for float64")
    x, y = on_device(shape, torch.float64)
    want = reference.multi_similarity_loss(x, y, **far)
    want = want.detach(), torch.autograd.grad(want, x)[0]
    for got, exact in zip(step(x, y, **far), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-12)
