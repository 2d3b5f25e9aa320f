"""What only a GPU can show: bits, order of streams, graphs, waits of the host, memory, launches."""

import warnings

import pytest
import torch
from cases import SPECS, Batch, assert_within_budget, case_id, factor_of, make_batch
from test_backward import gradients

import ms_kernels
from bench.gpu_timing import launched
from ms_kernels import multi_similarity_loss, reference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no CUDA device"),
    pytest.mark.skipif(
        "triton" not in ms_kernels.dispatch.built(),
        reason=f"triton: {ms_kernels.backends()['triton'].note}",
    ),
]

DTYPES = [torch.bfloat16, torch.float16, torch.float32, torch.float64]
SHAPES = [(997, None, 96), (1000, None, 200), (1009, None, 512), (1013, None, 1000)]
GIB = 2**30


@pytest.fixture(autouse=True)
def poison():
    """None: filling what is allocated would count as launches and hide what replays write."""


def on_gpu(batch):
    return Batch(*(v if v is None else v.cuda() for v in batch))


def clustered(n, d, dtype, classes=None):
    generator = torch.Generator("cuda").manual_seed(n + d)
    y = torch.randint(classes or max(1, n // 8), (n,), generator=generator, device="cuda")
    centres = torch.randn(n, d, generator=generator, device="cuda")
    return (centres[y] + torch.randn(n, d, generator=generator, device="cuda")).to(dtype), y


def step(x, y, **chosen):
    leaf = x.detach().requires_grad_()
    loss = multi_similarity_loss(leaf, y, backend="triton", **chosen)
    (dx,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), dx


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined"])
@pytest.mark.parametrize("shape", SHAPES, ids=lambda s: f"N{s[0]}_D{s[2]}")
def test_large_shapes_within_the_budget(shape, name, dtype):
    x, y, r, z = on_gpu(make_batch(*shape, SPECS[name], dtype))
    for reduction in ("mean", "none"):
        chosen = vars(SPECS[name])
        exact = gradients(
            reference.multi_similarity_loss, x.double(), y, None, None, reduction, chosen
        )
        same = gradients(reference.multi_similarity_loss, x, y, None, None, reduction, chosen)
        chosen = {**chosen, "backend": "triton"}
        got = gradients(multi_similarity_loss, x, y, None, None, reduction, chosen)
        for g, s, e in zip(got, same, exact, strict=True):
            assert_within_budget(g, s, e, factor_of(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
def test_refs_within_the_budget(dtype):
    x, y, r, z = on_gpu(make_batch(500, 1100, 200, SPECS["default"], dtype))
    chosen = vars(SPECS["default"])
    exact = gradients(reference.multi_similarity_loss, x.double(), y, r.double(), z, "mean", chosen)
    same = gradients(reference.multi_similarity_loss, x, y, r, z, "mean", chosen)
    chosen = {**chosen, "backend": "triton"}
    got = gradients(multi_similarity_loss, x, y, r, z, "mean", chosen)
    for g, s, e in zip(got, same, exact, strict=True):
        assert_within_budget(g, s, e, factor_of(dtype))


@pytest.mark.parametrize("n", [1000, 9001], ids=["counted", "sorted"])
def test_a_stream_of_its_own(n):
    """Inputs are still being made on the side stream when the loss is called there."""
    x, y = clustered(n, 128, torch.bfloat16)
    want = step(x, y)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        late = torch.zeros_like(x)
        torch.cuda._sleep(20_000_000)  # clocks: long after the host has launched everything
        late.copy_(x)
        got = step(late, y)
    side.synchronize()
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("n", [256, 1000, 9001])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=case_id)
def test_graph_is_captured_and_replayed_on_other_inputs(n, dtype):
    x, y = clustered(n, 200, dtype)
    other, labels = x.flip(1).contiguous() + x.roll(1, 0), y.roll(3)
    place, place_y = x.clone(), y.clone()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step(place, place_y)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, dx = step(place, place_y)
    for rows, classes in ((x, y), (other, labels), (x, y)):
        place.copy_(rows)
        place_y.copy_(classes)
        graph.replay()
        want = step(rows, classes)
        assert torch.equal(loss, want[0]) and torch.equal(dx, want[1])


@pytest.mark.parametrize("reduction", ["mean", "mean_valid", "none"])
@pytest.mark.parametrize("shape", [(512, 128), (9001, 768)], ids=["small", "large"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=case_id)
def test_the_host_never_waits(shape, dtype, reduction):
    x, y = clustered(*shape, dtype)
    leaf = x.requires_grad_()

    def run():
        loss = multi_similarity_loss(leaf, y, reduction=reduction, backend="triton")
        loss.backward(torch.ones_like(loss))

    run()
    leaf.grad = None
    torch.cuda.synchronize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the mode itself is said to be a prototype
        torch.cuda.set_sync_debug_mode("error")
        try:
            run()
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_a_wait_of_the_host_would_be_seen():
    x = torch.ones(1, device="cuda")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.cuda.set_sync_debug_mode("error")
        try:
            with pytest.raises(RuntimeError, match="synchroniz"):
                x.item()
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("shape", [(1000, 128), (9001, 96), (5003, 1000)], ids=case_id)
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
def test_twenty_runs_give_the_same_bits(shape, dtype, reduction):
    x, y = clustered(*shape, dtype)
    leaf = x.requires_grad_()
    first = None
    for _ in range(20):
        loss = multi_similarity_loss(leaf, y, reduction=reduction, backend="triton")
        (dx,) = torch.autograd.grad(loss.sum(), leaf)
        found = loss.detach(), dx
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))


def peak_of(n, d, dtype, **chosen):
    """Bytes at the peak of a step beyond the embeddings, labels and what else is alive."""
    x, y = clustered(n, d, dtype, n // 8)
    step(x, y, **chosen)
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    step(x, y, **chosen)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


@pytest.mark.parametrize("d", [128, 1024])
def test_memory_grows_as_n_d(d, record_property):
    peaks = {n: peak_of(n, d, torch.bfloat16) for n in (8192, 16384, 32768)}
    record_property("peak_bytes", peaks)
    # The tile sums grow as N squared, with a factor of 1 / 4096 bytes.
    budget = ms_kernels.options.workspace_bytes
    assert peaks[32768] <= 2.2 * peaks[16384] and peaks[16384] <= 2.2 * peaks[8192] + budget
    dense = 32768**2 * 2  # bytes of the similarities alone, in bfloat16
    assert peaks[32768] < dense / 4


@pytest.mark.parametrize("d", [128, 512])
def test_65536_rows_in_less_than_2_gb(d, record_property):
    peak = peak_of(65536, d, torch.bfloat16)
    record_property("peak_bytes", peak)
    assert peak < 2e9


def test_a_million_rows_in_less_than_4_gb(record_property):
    peak = peak_of(1 << 20, 128, torch.bfloat16)
    record_property("peak_bytes", peak)
    assert peak < 4e9


def test_refs_of_more_than_2_to_the_31_elements():
    """Few anchors and a memory past 32-bit offsets; its last rows alone give the same gradient."""
    count, d, last = (1 << 22) + 4096, 512, 4096
    generator = torch.Generator("cuda").manual_seed(0)
    r = torch.empty(count, d, dtype=torch.bfloat16, device="cuda").normal_(generator=generator)
    centre = torch.randn(d, generator=generator, device="cuda").to(torch.bfloat16)
    # All rows but the last are far from every anchor: mining drops them.
    r[-last:] += 2 * centre
    r[:-last] = -centre
    x = r[-64:].clone() + 0.1
    y, z = torch.arange(64, device="cuda"), torch.full((count,), -1, device="cuda")
    z[-last:] = torch.arange(last, device="cuda") % 64
    few = r[-last:].clone()
    found = []
    for refs, labels in ((r, z), (few, z[-last:].clone())):
        anchors, refs = x.clone().requires_grad_(), refs.requires_grad_()
        loss = ms_kernels.multi_similarity_loss(anchors, y, refs, labels, backend="triton")
        loss.backward()
        found.append((loss.detach(), anchors.grad, refs.grad[-last:]))
    for got, want in zip(*found, strict=True):
        assert want.abs().sum() > 0
        torch.testing.assert_close(got, want, rtol=1e-2, atol=1e-6)


def launches(run):
    """Of a second call: the first one compiles."""
    run()
    torch.cuda.synchronize()
    return launched(run)


def test_launches_of_a_step_do_not_grow(record_property):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the profiler's own
        found = {n: launches(lambda n=n: step(*clustered_once(n))) for n in (512, 2048, 8192)}
    record_property("launches", {n: len(names) for n, names in found.items()})
    print({n: len(names) for n, names in found.items()}, found[2048])
    deep = {n: len(launches(lambda n=n: step(*clustered_once(n, 512)))) for n in (2048, 8192)}
    record_property("launches_of_deep_rows", deep)
    assert deep[8192] <= 100  # panels of weights grow as N squared
    assert len(found[512]) > 0
    assert len(found[8192]) <= len(found[512]) + 8  # a few more chunks of partial sums
    assert len(found[8192]) <= 60


_batches = {}


def clustered_once(n, d=256):
    if (n, d) not in _batches:
        _batches[n, d] = clustered(n, d, torch.bfloat16)
    return _batches[n, d]
