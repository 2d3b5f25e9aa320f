"""What the tiled path of the cuda backend adds: blocks of several tiles, shared bounds, lists of
tiles, and its launches."""

import ctypes

import pytest
import torch
from cases import DTYPES, SPECS, case_id, make_batch
from host_gpu import build
from host_gpu.serve import few_tiles_are_many, serve
from judge import check_backward, check_forward

import ms_kernels
from ms_kernels import multi_similarity_loss, options, reference
from ms_kernels.backends import cuda
from ms_kernels.backends.interface import Side, Term
from ms_kernels.backends.native_call import native_spec
from ms_kernels.rules.spec import PairSpec

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))


@pytest.fixture
def module():
    return build.module()


@pytest.fixture
def backend(monkeypatch, module):
    return serve(monkeypatch, module, "by_tiles")


@pytest.fixture
def skip_below(monkeypatch):
    def choose(value):  # of batches that are float64
        monkeypatch.setattr(options, "_skip_below", value * 2.0**29)

    return choose


def counted(module, name, run):
    """How much a counter of the machine grows, and what `run` gives."""
    counter = getattr(ctypes.CDLL(module.__file__), f"host_gpu_{name}")
    counter.restype = ctypes.c_int64
    before = counter()
    found = run()
    return counter() - before, found


def step(x, y, *refs, **chosen):
    leaves = [v.detach().clone().requires_grad_() for v in (x, *refs[:1])]
    loss = multi_similarity_loss(leaves[0], y, *leaves[1:], *refs[1:], backend="cuda", **chosen)
    loss.sum().backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)


@pytest.fixture(scope="module")
def small_parts(tmp_path_factory):
    """A module with the plan of thousands of rows, for hundreds."""
    csrc = few_tiles_are_many(tmp_path_factory.mktemp("sources") / "csrc")
    names = (f"tiled_{str(dtype).removeprefix('torch.')}" for dtype in DTYPES)
    return build.module(csrc, tuple(names))


@pytest.fixture
def much_done_in_parts(monkeypatch, small_parts):
    serve(monkeypatch, small_parts, "by_tiles")


# Whatever its budget is, a call gives the same bits: see the next test. Of 16 bits float16 has more
# to go wrong.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16], ids=case_id)
@pytest.mark.parametrize(
    ("shape", "budget"),
    [
        *[((300, None, 20), 100_000), ((260, 140, 20), 40 << 20), ((70, 330, 20), 0)],
    ],
    ids=case_id,
)
def test_work_in_many_parts(much_done_in_parts, monkeypatch, shape, dtype, budget):
    monkeypatch.setattr(options, "_workspace_bytes", budget)
    batch = make_batch(*shape, SPECS["default"], dtype)
    check_forward(batch, SPECS["default"], dtype, "cuda")
    check_backward(batch, SPECS["default"], dtype, "cuda", "mean")


# Refs are another order of the same products; float16 has rooms of its own for them.
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        *[((260, None, 20), dtype) for dtype in DTYPES],
        *[((200, 330, 20), dtype) for dtype in (torch.float32, torch.float16)],
    ],
    ids=case_id,
)
def test_bits_do_not_depend_on_memory_or_order(much_done_in_parts, monkeypatch, shape, dtype):
    x, y, r, z = make_batch(*shape, SPECS["unmined"], dtype)
    refs = () if r is None else (r, z)

    def everything():
        stats = ms_kernels.row_statistics(x, y, *refs, epsilon=None, backend="cuda")
        found = [step(x, y, *refs, epsilon=None, reduction=c) for c in ("sum", "none")]
        return [*stats, *found[0], *found[1]]

    want = everything()
    monkeypatch.setattr(options, "_workspace_bytes", 0)
    monkeypatch.setenv("HOST_GPU_BACKWARDS", "1")
    assert all(torch.equal(g, w) for g, w in zip(everything(), want, strict=True))


def test_columns_in_the_gaps_between_labels_hold_no_positives(backend, module):
    """Rows of two distant labels; of the columns in label order, only both ends have theirs."""
    x, r = torch.randn(70, 8, dtype=torch.float64), torch.randn(640, 8, dtype=torch.float64)
    y, z = torch.arange(70) % 2 * 9, torch.arange(640) // 64
    near, found = products(module, lambda: ms_kernels.row_statistics(x, y, r, z, backend="cuda"))
    want = reference.row_statistics(x, y, r, z)
    for g, w in zip(found, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-11, atol=1e-12)
    five = (x[:5], z[:5], r[:5], z[:5])  # one tile of one class, looked at twice
    two_tiles, _ = products(module, lambda: ms_kernels.row_statistics(*five, backend="cuda"))
    # Twice the three tiles with positives, once the 19 of 20 that are not of one class.
    assert 2 * near == (2 * 3 + 19) * two_tiles


def separated(n, d, classes, spread=0.1):
    """Classes along directions of their own: mining empties the tiles between most of them."""
    y = torch.arange(n) * classes // n
    generator = torch.Generator().manual_seed(n)
    noise = torch.randn(n, d, generator=generator, dtype=torch.float64)
    return torch.eye(d, dtype=torch.float64)[y % d] + spread * noise, y


def products(module, run):
    return counted(module, "products", run)


def test_tiles_that_mining_emptied_are_not_visited(backend, module, skip_below):
    skip_below(0.0)
    x, y = separated(256, 16, 16)
    every, _ = products(module, lambda: step(x, y, epsilon=None))
    visited, got = products(module, lambda: step(x, y))
    # Of 16 tiles the 4 on the diagonal hold positives.
    assert visited < 0.6 * every
    leaf = x.clone().requires_grad_()
    want = multi_similarity_loss(leaf, y, backend="reference")
    want.backward()
    torch.testing.assert_close(got[0], want.detach(), rtol=1e-12, atol=0)
    torch.testing.assert_close(got[1], leaf.grad, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("bound", [2.0**-24, 1e-3, 0.1])
@pytest.mark.parametrize("with_refs", [False, True], ids=["self", "refs"])
def test_what_is_skipped_stays_under_its_bound(backend, skip_below, bound, with_refs):
    x, y = separated(256, 16, 32)
    x = x + 0.2 * torch.randn(256, 16, dtype=torch.float64)
    refs = separated(130, 16, 32) if with_refs else ()
    skip_below(0.0)
    _, *exact = step(x, y, *refs, reduction="mean")
    skip_below(bound)
    _, *approximate = step(x, y, *refs, reduction="mean")
    stats = ms_kernels.row_statistics(x, y, *refs, backend="reference")
    greatest = float((-torch.expm1(-torch.nn.functional.softplus(stats.neg_lse))).max())
    for side, full, part in zip((x, *refs[:1]), exact, approximate, strict=True):
        # Through the normalisation an error grows by 1 / |x| at most.
        error = (full - part).norm(dim=1) * side.norm(dim=1)
        assert error.max() <= (1 + 64) * bound * greatest / len(y) + 1e-15
        assert error.sum() <= 2 * bound * greatest + 1e-14


def test_tiles_of_negligible_weight_are_skipped(backend, module, skip_below):
    """Without mining every negative is kept; those of distant classes weigh next to nothing."""
    x, y = separated(320, 16, 5, spread=0.02)
    x[y == 1] = x[y == 0] + 0.05 * x[y == 1]
    found = []
    for bound in (0.0, 2.0**-24, 1e-3):
        skip_below(bound)
        found.append(products(module, lambda: step(x, y, epsilon=None)))
    assert found[2][0] < 0.5 * found[0][0] and found[1][0] <= found[0][0]
    scale = float(found[0][1][1].abs().max())
    torch.testing.assert_close(found[1][1][1], found[0][1][1], rtol=0, atol=2.0**-22 * scale)


def test_a_similarity_that_overflows_spoils_rows_of_tiles_that_are_not_visited(backend):
    x, y = separated(200, 8, 40)
    x = x.float()
    x[3] *= 1e30
    x[190] = x[3]
    _, dx = step(x, y, normalize=False)
    assert dx.isnan().all()


@pytest.mark.parametrize("shape", [(70, None, 5), (70, 90, 5)], ids=case_id)
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
def test_a_gradient_grows_with_the_incoming_one(backend, shape, dtype):
    """By powers of two, to the bits: also where float16 could not hold the weights."""
    x, y, r, z = make_batch(*shape, SPECS["default"], dtype)
    spec = PairSpec()
    rows, columns = Side(x, y, None), None if r is None else Side(r, z, None)
    stats = cuda.row_statistics(rows, columns, spec)
    found = []
    for scale in (1.0, 2.0**30, 2.0**-30):
        term = Term(stats, torch.full_like(stats.pos_lse, scale))
        both = (term, term if columns is None else None)
        found.append(cuda.embedding_gradient(rows, columns, spec, *both) / scale)
    assert found[0].any()
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_launches_do_not_grow_with_the_batch(backend, module):
    """Copy; positives, negatives, positives: parts and their sum; list, weights, product."""
    for n in (40, 200):
        x, y, r, z = make_batch(n, 150, 5, SPECS["default"], torch.float64)
        assert counted(module, "launches", lambda: step(x, y))[0] == 10  # noqa: B023
        assert counted(module, "launches", lambda: step(x, y, r, z))[0] == 14  # noqa: B023
        count, _ = counted(
            module,
            "launches",
            lambda: ms_kernels.row_statistics(x, y, backend="cuda"),  # noqa: B023
        )
        assert count == 7


def test_the_size_of_a_batch_chooses_the_path(monkeypatch, module):
    backend = serve(monkeypatch, module, "one_launch")
    monkeypatch.setattr(cuda, "ONE_LAUNCH", 64)
    for n, m, wanted in ((64, None, 1), (65, None, 10), (64, 64, 1), (64, 65, 14), (65, 64, 14)):
        x, y, r, z = make_batch(n, m, 5, SPECS["default"], torch.float64)
        refs = () if r is None else (r, z)
        count, _ = counted(module, "launches", lambda: step(x, y, *refs))  # noqa: B023
        assert count == wanted
    assert backend == "cuda"


def workspace(module, n, budget):
    """Bytes that a step of n bfloat16 rows of depth 128 plans for beyond their copies."""
    call = module.Call(
        module.Job.loss_and_gradient,
        module.DType.bfloat16,
        module.Precision.highest,
        128,
        (256, 128, n, 256, 0, 256),
        None,
        native_spec(PairSpec(), torch.float32),
        2.0**-24,
        True,
    )
    call.write_gradients(256, 0)
    return call.plan(budget) - 2 * 128 * n


def test_the_workspace_is_the_budget_and_little_a_row(module):
    """Nothing is launched: these batches are too large for the machine."""
    for n in (2**12, 2**16, 2**20):
        # A tile of rows with partial sums for all columns is the least, and 2^24 bounds the most.
        assert workspace(module, n, 40 << 20) < 4 * (40 << 20) + (64 << 20) + 256 * n
        assert workspace(module, n, 0) < (64 << 20) + 1024 * n
    # The most rows there may be: more tiles of them than bounds.
    assert workspace(module, 2**31 - 2048, 0) < 1024 * 2**31
    # Beyond the bounds of tiles, which stop growing at 2^18 rows, it is linear.
    sizes = [workspace(module, n, 40 << 20) for n in (2**18, 2**19, 2**20)]
    assert sizes[2] - sizes[1] < 2.1 * (sizes[1] - sizes[0]) + (1 << 20)
