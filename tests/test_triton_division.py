"""How the Triton kernels divide the work: launches of the scan, panels, parts, budgets."""

import functools

import pytest
import torch
from cases import (
    SPECS,
    Batch,
    MultiSimilarityOptions,
    assert_within_budget,
    deeper_than_held_whole,
    make_batch,
)
from judge import floors_of, gradients

import ms_kernels
from ms_kernels import multi_similarity_loss, options, reference
from ms_kernels.rules.spec import PairSpec
from ms_kernels.rules.weighting import Circle

triton = pytest.importorskip("triton")
tl = pytest.importorskip("triton.language")
if "triton" not in ms_kernels.backends.dispatch.built():
    pytest.skip(ms_kernels.backends()["triton"].note, allow_module_level=True)

from ms_kernels.backends.triton import (  # noqa: E402
    launch_gradient,
    launch_negatives,
    launch_parts,
    problem,
    rule_table,
    side_rows,
)
from ms_kernels.backends.triton.stash import stashed_tile  # noqa: E402
from ms_kernels.backends.triton.tiles import Tile, interpreted  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"


DIVISIONS = pytest.mark.parametrize(
    ("shape", "dtype", "busy", "budget", "reduction"),
    [
        ((97, None, 20), torch.float32, problem.BUSY, 40 << 20, "none"),
        ((97, None, 20), torch.float32, 1, 9000, "mean"),
        ((97, None, 70), torch.float16, problem.BUSY, 9000, "mean"),
        ((97, None, 70), torch.float16, 1, 40 << 20, "none"),
        ((37, 130, 70), torch.float64, problem.BUSY, 9000, "none"),
        ((37, 130, 70), torch.float64, 1, 9000, "mean"),
        ((37, 130, 12), torch.float64, problem.BUSY, 40 << 20, "mean"),
    ],
)


# Scans with blocks of their own, higher than wide or wider than high: on a GPU those of its table.
SCANS = pytest.mark.parametrize("lean", [None, Tile(64, 32, 32, 1, 1)], ids=["", "lean"])


def with_lean_scans(monkeypatch, lean):
    if lean is None:
        return
    if not interpreted():
        pytest.skip("a GPU has tiles of its own")
    real = problem.tiles_of
    monkeypatch.setattr(
        problem, "tiles_of", lambda mode, device: real(mode, device)._replace(lean=lean)
    )


def everything(x, y, **chosen):
    leaf = x.clone().requires_grad_()
    loss = multi_similarity_loss(leaf, y, backend="triton", **chosen)
    loss.backward()
    stats = ms_kernels.row_statistics(x, y, backend="triton", **chosen)
    return [loss.detach(), leaf.grad, *stats]


@pytest.mark.parametrize(("d", "busy"), [(20, problem.BUSY), (70, 1)])
def test_the_same_bits_in_every_run_and_for_every_budget(monkeypatch, d, busy):
    monkeypatch.setattr(launch_parts.Launch, "BUSY", busy)
    x, y, _, _ = make_batch(97, None, d, SPECS["default"], torch.float32).to(DEVICE)
    want = everything(x, y)
    for budget in (options.workspace_bytes, 20_000, 0):
        options.workspace_bytes = budget
        for got, first in zip(everything(x, y), want, strict=True):
            assert torch.equal(got, first)


@DIVISIONS
def test_gradients_however_the_work_is_divided(monkeypatch, shape, dtype, busy, budget, reduction):
    """Blocks of rows shared by programs or not; panels of all tiles or of some."""
    monkeypatch.setattr(launch_parts.Launch, "BUSY", busy)
    options.workspace_bytes = budget
    x, y, r, z = make_batch(*shape, SPECS["default"], dtype).to(DEVICE)
    wide = None if r is None else r.double()
    chosen = vars(SPECS["default"])
    dense = reference.multi_similarity_loss
    exact = gradients(dense, x.double(), y, wide, z, reduction, chosen)
    same = [None] * len(exact) if interpreted() else gradients(dense, x, y, r, z, reduction, chosen)
    chosen = {**chosen, "backend": "triton"}
    got = gradients(multi_similarity_loss, x, y, r, z, reduction, chosen)
    floors = floors_of(Batch(x, y, r, z), SPECS["default"], reduction, "triton")
    for g, s, e, floor in zip(got, same, exact, floors, strict=True):
        assert_within_budget(g, s, e, floor)


@SCANS
def test_scans_of_blocks_higher_than_wide(monkeypatch, lean):
    """As those of the Multi-Similarity loss on sm_90. Every pair weighs: padding would show."""
    with_lean_scans(monkeypatch, lean)
    x, y, _, _ = make_batch(150, None, 20, SPECS["default"], torch.float32).to(DEVICE)
    chosen = {**vars(SPECS["default"]), "beta": 4.0, "base": 0.0, "epsilon": None}
    want = gradients(reference.multi_similarity_loss, x.double(), y, None, None, "mean", chosen)
    got = gradients(
        multi_similarity_loss, x, y, None, None, "mean", {**chosen, "backend": "triton"}
    )
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.double(), w, rtol=1e-5, atol=1e-7)


@triton.jit
def places(out, column_blocks, M: tl.constexpr, N: tl.constexpr):
    at = tl.program_id(0) * column_blocks + tl.program_id(1)
    tl.store(out + at, stashed_tile(tl.program_id(0), tl.program_id(1), column_blocks, M, N))


@pytest.mark.parametrize(("m", "n"), [(32, 64), (64, 32), (64, 64), (128, 32)])
def test_kept_tiles_lie_one_after_another(m, n):
    """Those from the diagonal on, in as much memory as there is for them."""
    rows, columns = triton.cdiv(500, m), triton.cdiv(500, n)
    found = torch.empty(rows, columns, dtype=torch.int64, device=DEVICE)
    places[(rows, columns)](found, columns, m, n)
    kept = [int(found[i, j]) for i in range(rows) for j in range(i * m // n, columns)]
    assert kept == [k * m * n for k in range(len(kept))]
    assert launch_negatives.stash_size(Tile(m, n, 32, 1, 1), rows, columns) == len(kept) * m * n


def test_samples_ordered_by_a_sort(monkeypatch):
    """As above 8,192 rows, where counting would cost more."""
    batch = make_batch(97, 70, 12, SPECS["default"], torch.float64)
    x, y, r, z = batch.to(DEVICE)
    chosen = {**vars(SPECS["default"]), "backend": "triton"}
    want = gradients(multi_similarity_loss, x, y, r, z, "mean", chosen)
    monkeypatch.setattr(side_rows, "MOST_COUNTED", 0)
    got = gradients(multi_similarity_loss, x, y, r, z, "mean", chosen)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


def test_exponents_of_a_million_unit_rows_stay_in_range():
    spec = SPECS["default"]
    assert spec.beta * (1 + spec.base) == problem.BOUND[torch.float32]
    most = problem.BOUND[torch.float32]
    bounded = functools.partial(rule_table.is_bounded, most_exponent=most, known=True)
    assert bounded(spec.spec, 1 << 20)
    assert not bounded(spec.spec, 1 << 20, known=False)
    sharp = MultiSimilarityOptions(beta=50.0, base=-0.49).spec
    assert bounded(sharp, 1 << 17)
    assert not bounded(sharp, 1 << 20)
    # From -gamma m^2 to gamma (1 - m^2).
    for circle, fits in (
        ((), True),
        ((0.25, 80.0), True),
        ((0.25, 81.0), False),
        ((1.0, 76.0), False),
    ):
        assert bounded(PairSpec(Circle(*circle)), 1 << 17) == fits
    for how in ({"normalize": False}, {"distance": "euclidean"}):
        assert not bounded(PairSpec(Circle(), **how), 1)


@SCANS
def test_kept_exponentials_give_the_gradient_of_computed_ones(monkeypatch, lean):
    """Of half rows that no program holds whole; blocks of rows shared or not. Every negative
    weighs, kept by one side or by both, so that a pair out of its place shows."""
    with_lean_scans(monkeypatch, lean)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(100, deeper_than_held_whole(DEVICE), generator=generator).to(
        DEVICE, torch.bfloat16
    )
    y = (torch.arange(100) // 2).to(DEVICE)
    taken = []
    real = launch_gradient._from_stash
    monkeypatch.setattr(
        launch_gradient, "_from_stash", lambda *given: taken.append(given) or real(*given)
    )

    def gradient(stash_bytes, busy):
        options.stash_bytes = stash_bytes
        monkeypatch.setattr(launch_parts.Launch, "BUSY", busy)
        leaf = x.clone().requires_grad_()
        loss = multi_similarity_loss(leaf, y, beta=4.0, base=0.0, epsilon=0.05, backend="triton")
        loss.backward()
        return leaf.grad.double()

    want = gradient(0, problem.BUSY)
    assert not taken
    for busy in (problem.BUSY, 1):
        got = gradient(1 << 30, busy)
        assert float((got - want).norm() / want.norm()) < 2.0**-7
    assert len(taken) == 2


def test_partial_sums_stay_within_the_budget(monkeypatch):
    """But for those of as many blocks of rows as are merged at once."""
    seen = []
    real = launch_negatives._partials
    monkeypatch.setattr(
        launch_negatives, "_partials", lambda *args: seen.append(real(*args)) or seen[-1]
    )
    x, y, _, _ = make_batch(270, None, 8, SPECS["default"], torch.float32).to(DEVICE)
    held = []
    for budget in (0, 40 << 20):
        seen.clear()
        options.workspace_bytes = budget
        multi_similarity_loss(x, y, backend="triton")
        held.append(sum(t.numel() * t.element_size() for partials in seen for t in partials))
    # Of nine blocks of rows eight, or all.
    assert 0 < held[0] < held[1]
