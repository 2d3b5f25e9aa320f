"""What only a GPU can show: bits, order of streams, graphs, waits of the host, memory, launches."""

import pytest
import torch
from cases import SPECS, Batch, assert_within_budget, case_id, make_batch
from judge import floors_of, gradients
from on_device import (
    DEVICE,
    DTYPES,
    REHEARSED,
    clustered,
    cuda,
    host_never_waits,
    needs,
    peak_of,
    replayed,
    step,
    tiny,
)

import ms_kernels
from bench.gpu_timing import launched
from ms_kernels import multi_similarity_loss, options, reference

pytestmark = needs("triton")

BF16_AND_FLOAT32 = [torch.bfloat16, torch.float32]
SHAPES = tiny(
    [(997, None, 96), (1000, None, 200), (1009, None, 512), (1013, None, 1000)], [(37, None, 16)]
)


@pytest.fixture(autouse=True)
def poison():
    """None: filling what is allocated would count as launches and hide what replays write."""


def on_gpu(batch):
    return Batch(*(v if v is None else v.to(DEVICE) for v in batch))


def triton_step(x, y, **chosen):
    return step(x, y, "triton", **chosen)


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
        floors = floors_of(Batch(x, y, r, z), SPECS[name], reduction, "triton")
        for g, s, e, floor in zip(got, same, exact, floors, strict=True):
            assert_within_budget(g, s, e, floor)


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
def test_refs_within_the_budget(dtype):
    shape = tiny((500, 1100, 200), (20, 40, 24))
    x, y, r, z = on_gpu(make_batch(*shape, SPECS["default"], dtype))
    chosen = vars(SPECS["default"])
    exact = gradients(reference.multi_similarity_loss, x.double(), y, r.double(), z, "mean", chosen)
    same = gradients(reference.multi_similarity_loss, x, y, r, z, "mean", chosen)
    chosen = {**chosen, "backend": "triton"}
    got = gradients(multi_similarity_loss, x, y, r, z, "mean", chosen)
    floors = floors_of(Batch(x, y, r, z), SPECS["default"], "mean", "triton")
    for g, s, e, floor in zip(got, same, exact, floors, strict=True):
        assert_within_budget(g, s, e, floor)


@pytest.mark.parametrize("n", tiny([1000, 9001], [30]))  # ranks counted, and sorted
def test_a_stream_of_its_own(n):
    """Inputs are still being made on the side stream when the loss is called there."""
    x, y = clustered(n, tiny(128, 24), torch.bfloat16)
    want = triton_step(x, y)
    cuda.synchronize()
    side = cuda.Stream()
    with cuda.stream(side):
        late = torch.zeros_like(x)
        cuda._sleep(20_000_000)  # clocks: long after the host has launched everything
        late.copy_(x)
        got = triton_step(late, y)
    side.synchronize()
    assert torch.equal(got[0], want[0]) and torch.equal(got[1], want[1])


@pytest.mark.parametrize("n", tiny([256, 1000, 9001], [30]))
@pytest.mark.parametrize("dtype", BF16_AND_FLOAT32, ids=case_id)
def test_graph_is_captured_and_replayed_on_other_inputs(n, dtype):
    x, y = clustered(n, tiny(200, 24), dtype)
    other, labels = x.flip(1).contiguous() + x.roll(1, 0), y.roll(3)
    place, place_y = x.clone(), y.clone()
    (loss, dx), replay = replayed(lambda: triton_step(place, place_y))
    batches = ((x, y), (other, labels), (x, y))
    for rows, classes in batches[: tiny(3, 1)]:  # a stand-in's replay computes nothing
        place.copy_(rows)
        place_y.copy_(classes)
        replay()
        want = triton_step(rows, classes)
        assert torch.equal(loss, want[0]) and torch.equal(dx, want[1])


@pytest.mark.parametrize("reduction", tiny(["mean", "mean_valid", "none"], ["mean"]))
@pytest.mark.parametrize("shape", tiny([(512, 128), (9001, 768)], [(30, 24)]), ids=case_id)
@pytest.mark.parametrize("dtype", DTYPES[-3:], ids=case_id)
def test_the_host_never_waits(shape, dtype, reduction):
    x, y = clustered(*shape, dtype)
    leaf = x.requires_grad_()

    def run():
        loss = multi_similarity_loss(leaf, y, reduction=reduction, backend="triton")
        loss.backward(torch.ones_like(loss))

    run()
    leaf.grad = None
    with host_never_waits():
        run()


def test_a_wait_of_the_host_would_be_seen():
    x = torch.ones(1, device=DEVICE)
    with host_never_waits(), pytest.raises(RuntimeError, match="synchroniz"):
        x.item()
    assert x.item() == 1  # the mode is what it was


@pytest.mark.parametrize("reduction", tiny(["mean", "none"], ["none"]))
@pytest.mark.parametrize(
    "shape", tiny([(1000, 128), (9001, 96), (5003, 1000)], [(30, 24)]), ids=case_id
)
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
def test_twenty_runs_give_the_same_bits(shape, dtype, reduction):
    x, y = clustered(*shape, dtype)
    first = None
    for _ in range(tiny(20, 2)):
        found = triton_step(x, y, reduction=reduction)
        first = first or found
        assert all(torch.equal(a, b) for a, b in zip(found, first, strict=True))


def peak_of_step(n, d, dtype):
    """Bytes beyond the embeddings, labels and what else is alive."""
    x, y = clustered(n, d, dtype, n // 8)
    return peak_of(lambda: triton_step(x, y))


@pytest.mark.parametrize("d", tiny([128, 1024], [24]))
def test_memory_grows_as_n_d(d, record_property):
    sizes = tiny((8192, 16384, 32768), (8, 8, 8))
    peaks = {}
    for stash_bytes in (0, options.stash_bytes):
        options.stash_bytes = stash_bytes
        peaks[stash_bytes] = [peak_of_step(n, d, torch.bfloat16) for n in sizes]
        record_property(f"peak_bytes, stash_bytes={stash_bytes}", peaks[stash_bytes])
    least, middle, most = peaks[0]
    # The tile sums grow as N squared, with a factor of 1 / 4096 bytes.
    budget = options.workspace_bytes
    assert most <= 2.2 * middle and middle <= 2.2 * least + budget
    # Exponentials are kept besides, as N squared too, as long as all of them fit their budget.
    for alone, peak in zip(peaks[0], peaks[stash_bytes], strict=True):
        assert peak <= alone + stash_bytes
    dense = sizes[-1] ** 2 * 2  # bytes of the similarities alone, in bfloat16
    assert peaks[stash_bytes][-1] < dense / 4 or REHEARSED


@pytest.mark.parametrize("d", tiny([128, 512], [24]))
def test_65536_rows_in_less_than_2_gb(d, record_property):
    peak = peak_of_step(tiny(65536, 24), d, torch.bfloat16)
    record_property("peak_bytes", peak)
    assert peak < 2e9


def test_a_million_rows_in_less_than_4_gb(record_property):
    peak = peak_of_step(tiny(1 << 20, 24), tiny(128, 16), torch.bfloat16)
    record_property("peak_bytes", peak)
    assert peak < 4e9


def test_refs_of_more_than_2_to_the_31_elements():
    """Few anchors and a memory past 32-bit offsets; its last rows alone give the same gradient."""
    count, d, last = tiny(((1 << 22) + 4096, 512, 4096), (68, 16, 64))
    generator = torch.Generator(DEVICE).manual_seed(0)
    r = torch.empty(count, d, dtype=torch.bfloat16, device=DEVICE).normal_(generator=generator)
    centre = torch.randn(d, generator=generator, device=DEVICE).to(torch.bfloat16)
    # All rows but the last are far from every anchor: mining drops them.
    r[-last:] += 2 * centre
    r[:-last] = -centre
    x = r[-64:].clone() + 0.1
    y, z = torch.arange(64, device=DEVICE), torch.full((count,), -1, device=DEVICE)
    z[-last:] = torch.arange(last, device=DEVICE) % 64
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
    cuda.synchronize()
    return [name for name, _ in launched(run)]


def test_launches_of_a_step_do_not_grow(record_property):
    small, middle, large = tiny((512, 2048, 8192), (8, 8, 8))
    shallow = {n: launches(step_at(n, tiny(256, 16))) for n in (small, middle, large)}
    deep = {n: launches(step_at(n, tiny(512, 24))) for n in (middle, large)}
    record_property("launches", {n: len(names) for n, names in shallow.items()})
    record_property("launches_of_deep_rows", {n: len(names) for n, names in deep.items()})
    assert len(shallow[small]) > 0
    # A few more chunks of partial sums; panels of weights grow as N squared.
    assert len(shallow[large]) <= len(shallow[small]) + 8
    assert REHEARSED or (len(shallow[large]) <= 60 and len(deep[large]) <= 100)


def step_at(n, d):
    x, y = clustered(n, d, torch.bfloat16)
    return lambda: triton_step(x, y)
