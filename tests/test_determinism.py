"""The same bits over runs, over threads, and over whatever memory the budgets allow."""

import pytest
import torch
from cases import BACKENDS, SPECS, make_batch

import ms_kernels
from ms_kernels import multi_similarity_loss, options


def everything(batch, spec, backend):
    """Losses, gradients by both routes, statistics."""
    x, y, r, z = batch
    leaves = [v.clone().requires_grad_() for v in (x, r) if v is not None]
    refs = [] if r is None else [leaves[1], z]
    found = list(ms_kernels.row_statistics(x, y, r, z, backend=backend, **vars(spec)))
    for reduction in ("mean", "none"):
        loss = multi_similarity_loss(
            leaves[0], y, *refs, reduction=reduction, backend=backend, **vars(spec)
        )
        found += [loss, *torch.autograd.grad(loss.sum(), leaves)]
    return found


def same_bits(a, b):
    return all(torch.equal(p, q) for p, q in zip(a, b, strict=True))


SHAPES = [(389, None, 200), (1030, None, 33), (1300, None, 130), (500, 60, 48), (130, 1100, 70)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("backend", "dtype", "name"),
    [
        *[("cpu", d, "default") for d in (torch.float32, torch.float64, torch.bfloat16)],
        ("cpu", torch.float32, "unmined"),
        ("panels", torch.float32, "default"),
    ],
    ids=str,
)
def test_runs_and_threads(backend, dtype, shape, name):
    if backend not in BACKENDS:
        pytest.skip("the compiled module is not built")
    batch = make_batch(*shape, SPECS[name], dtype)
    torch.set_num_threads(1)
    first = everything(batch, SPECS[name], backend)
    assert same_bits(everything(batch, SPECS[name], backend), first)
    torch.set_num_threads(2)
    again = everything(batch, SPECS[name], backend)
    if backend != "cpu":  # panels multiply with torch.mm, whose bits depend on the threads
        first = again
    for _ in range(2):
        assert same_bits(everything(batch, SPECS[name], backend), first)
    assert same_bits(again, first)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", ["default", "unmined", "sharp"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_memory_budget(shape, dtype, name):
    if "cpu" not in ms_kernels.backends.dispatch.built():
        pytest.skip("the compiled module is not built")
    batch = make_batch(*shape, SPECS[name], dtype)
    want = everything(batch, SPECS[name], "cpu")
    for budget in (0, 1 << 20, 3 << 20, 6 << 20, 1 << 30):
        options.workspace_bytes = budget
        assert same_bits(everything(batch, SPECS[name], "cpu"), want), budget


@pytest.mark.parametrize(
    ("sizes", "epsilon"),
    [((2500, None), 0.1), ((6500, None), None), ((3300, 6800), 0.1), ((40, 20000), None)],
    ids=str,
)
def test_many_waves_and_super_blocks(sizes, epsilon):
    """More tiles than one wave takes, more blocks than a row has cells: the streaming answer."""
    if "cpu" not in ms_kernels.backends.dispatch.built():
        pytest.skip("the compiled module is not built")
    (n, m), generator = sizes, torch.Generator().manual_seed(0)
    x = torch.randn(n, 6, generator=generator, dtype=torch.float64).requires_grad_()
    y = torch.randint(n // 8, (n,), generator=generator)
    leaves, refs = [x], []
    if m is not None:
        r = torch.randn(m, 6, generator=generator, dtype=torch.float64).requires_grad_()
        leaves, refs = [x, r], [r, torch.randint(n // 8, (m,), generator=generator)]

    def rows_of(backend):
        return multi_similarity_loss(
            x, y, *refs, epsilon=epsilon, reduction="none", backend=backend
        )

    def run():
        total = multi_similarity_loss(x, y, *refs, epsilon=epsilon, backend="cpu")
        return [rows_of("cpu"), *torch.autograd.grad(total, leaves)]

    got, streamed = run(), rows_of("panels")
    wanted = [streamed, *torch.autograd.grad(streamed.mean(), leaves)]
    for g, want in zip(got, wanted, strict=True):
        torch.testing.assert_close(g, want, rtol=1e-9, atol=1e-12)
    # The budget is 40 MiB: of the small batches everything is kept, of the others a part.
    for budget, threads in ((0, 1), (8 << 20 if n < 6000 else 1 << 30, 2)):
        options.workspace_bytes = budget
        torch.set_num_threads(threads)
        assert same_bits(run(), got)


def test_panel_budget_changes_rounding_only():
    batch = make_batch(257, None, 16, SPECS["default"], torch.float64)
    want = everything(batch, SPECS["default"], "panels")
    for panel_bytes in (1, 5000, 257 * 8 * 100):
        options.panel_bytes = panel_bytes
        for got, exact in zip(everything(batch, SPECS["default"], "panels"), want, strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none", "mean_valid"])
@pytest.mark.parametrize("with_gradient", [False, True], ids=["no_grad", "grad"])
def test_many_rows_do_not_depend_on_the_threads(reduction, with_gradient):
    """torch shares out sums and exponentials of more than 32768 numbers among its threads."""
    if "cpu" not in ms_kernels.backends.dispatch.built():
        pytest.skip("the compiled module is not built")
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(70_001, 4, generator=generator).requires_grad_(with_gradient)
    y = torch.arange(70_001) // 8
    r, z = torch.randn(24, 4, generator=generator), torch.arange(24)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        loss = multi_similarity_loss(x, y, r, z, reduction=reduction, backend="cpu")
        dx = [torch.autograd.grad(loss.sum(), x)[0]] if with_gradient else []
        found.append([loss.detach(), *dx])
    assert same_bits(*found)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
def test_every_route_gives_the_same_loss(dtype):
    if "cpu" not in ms_kernels.backends.dispatch.built():
        pytest.skip("the compiled module is not built")
    x, y, _, _ = make_batch(389, None, 200, SPECS["default"], dtype)
    leaf = x.clone().requires_grad_()
    for reduction in ("mean", "none"):
        options = dict(reduction=reduction, backend="cpu")
        got = multi_similarity_loss(leaf, y, **options).detach()
        assert torch.equal(got, multi_similarity_loss(x, y, **options))
