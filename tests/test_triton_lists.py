"""How the Triton kernels divide the work: lists of tiles, panels, parts, budgets."""

import pytest
import rounding
import torch
from cases import SPECS, Batch, MultiSimilarityOptions, assert_within_budget, make_batch
from judge import floors_of, gradients

import ms_kernels
from ms_kernels import multi_similarity_loss, options, reference

pytest.importorskip("triton")
if "triton" not in ms_kernels.backends.dispatch.built():
    pytest.skip(ms_kernels.backends()["triton"].note, allow_module_level=True)

from ms_kernels.backends.triton import launch_negatives, launch_tiles, problem, rule_table  # noqa: E402
from ms_kernels.backends.triton.tiles import interpreted  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"


def on_device(batch):
    return Batch(*(v if v is None else v.to(DEVICE) for v in batch))


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


def everything(x, y, **chosen):
    leaf = x.clone().requires_grad_()
    loss = multi_similarity_loss(leaf, y, backend="triton", **chosen)
    loss.backward()
    stats = ms_kernels.row_statistics(x, y, backend="triton", **chosen)
    return [loss.detach(), leaf.grad, *stats]


@pytest.mark.parametrize(("d", "busy"), [(20, problem.BUSY), (70, 1)])
def test_the_same_bits_in_every_run_and_for_every_budget(monkeypatch, d, busy):
    monkeypatch.setattr(launch_tiles.Launch, "BUSY", busy)
    x, y, _, _ = on_device(make_batch(97, None, d, SPECS["default"], torch.float32))
    want = everything(x, y)
    for budget in (options.workspace_bytes, 20_000, 0):
        options.workspace_bytes = budget
        for got, first in zip(everything(x, y), want, strict=True):
            assert torch.equal(got, first)


@DIVISIONS
def test_gradients_however_the_work_is_divided(monkeypatch, shape, dtype, busy, budget, reduction):
    """Blocks of rows shared by programs or not; panels of all tiles or of some."""
    monkeypatch.setattr(launch_tiles.Launch, "BUSY", busy)
    options.workspace_bytes = budget
    x, y, r, z = on_device(make_batch(*shape, SPECS["default"], dtype))
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


def test_samples_ordered_by_a_sort(monkeypatch):
    """As above 8,192 rows, where counting would cost more."""
    batch = make_batch(97, 70, 12, SPECS["default"], torch.float64)
    x, y, r, z = on_device(batch)
    chosen = {**vars(SPECS["default"]), "backend": "triton"}
    want = gradients(multi_similarity_loss, x, y, r, z, "mean", chosen)
    monkeypatch.setattr(problem, "MOST_COUNTED", 0)
    got = gradients(multi_similarity_loss, x, y, r, z, "mean", chosen)
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


def test_exponents_of_a_million_unit_rows_stay_in_range():
    spec = SPECS["default"]
    assert spec.beta * (1 + spec.base) == problem.BOUND[torch.float32]
    most = problem.BOUND[torch.float32]
    assert rule_table.is_bounded(spec.spec, 1 << 20, most)
    sharp = MultiSimilarityOptions(beta=50.0, base=-0.49).spec
    assert rule_table.is_bounded(sharp, 1 << 17, most)
    assert not rule_table.is_bounded(sharp, 1 << 20, most)


def separated(n, d, classes):
    """Tight classes far apart: mining keeps few pairs."""
    generator = torch.Generator().manual_seed(0)
    centres = torch.nn.functional.normalize(torch.randn(classes, d, generator=generator), dim=1)
    y = torch.arange(n) % classes
    x = centres[y] + 0.05 * torch.randn(n, d, generator=generator)
    return x.to(DEVICE), y.to(DEVICE)


def listed(x, y, monkeypatch, skip_below, **chosen):
    """Tiles that the gradient visits, and all there are."""
    options.skip_below = skip_below
    seen = []
    real = launch_tiles.Launch.lists

    def record(self, budget):
        for found in real(self, budget):
            seen.append(found)
            yield found

    monkeypatch.setattr(launch_tiles.Launch, "lists", record)
    leaf = x.clone().requires_grad_()
    multi_similarity_loss(leaf, y, backend="triton", **chosen).backward()
    monkeypatch.undo()
    (found,) = seen
    return int(found.counts[:, 1].sum()), found.tiles.numel(), leaf.grad


def test_tiles_that_mining_emptied_are_not_visited(monkeypatch):
    x, y = separated(128, 16, 16)
    visited, every, dx = listed(x, y, monkeypatch, 0.0)
    assert visited < every
    leaf = x.double().requires_grad_()
    multi_similarity_loss(leaf, y, backend="reference").backward()
    same = None
    if not interpreted():
        same = x.clone().requires_grad_()
        multi_similarity_loss(same, y, backend="reference").backward()
    (floor,) = rounding.of_spec((x, y), SPECS["default"], "triton").gradients("mean")
    assert_within_budget(dx, None if same is None else same.grad, leaf.grad, floor)


def test_tiles_of_negligible_weight_are_skipped(monkeypatch):
    """Without mining every negative is kept; those of distant classes weigh next to nothing."""
    x, y = separated(160, 16, 5)
    x[y == 1] = x[y == 0] + 0.05 * x[y == 1]
    visited = [listed(x, y, monkeypatch, bound, epsilon=None) for bound in (0.0, 2.0**-24, 1e-3)]
    assert visited[0][0] == visited[0][1]
    assert visited[2][0] < visited[0][0]
    scale = float(visited[0][2].abs().max())
    torch.testing.assert_close(visited[1][2], visited[0][2], rtol=0, atol=2.0**-22 * scale)


@pytest.mark.parametrize("skip_below", [1e-3, 0.1])
def test_what_is_skipped_stays_under_its_bound(monkeypatch, skip_below):
    x, y = separated(160, 16, 5)
    x[y == 1] = x[y == 0] + 0.05 * x[y == 1]
    most, _, dx = listed(x, y, monkeypatch, 0.0, epsilon=None)
    fewer, _, approximate = listed(x, y, monkeypatch, skip_below, epsilon=None)
    assert fewer < most
    greatest = greatest_weight(x, y)
    # Through the normalisation an error grows by 1 / |x| at most.
    error = (dx - approximate).norm(dim=1) * x.norm(dim=1)
    assert 0 < error.mean() <= 2 * skip_below * greatest / len(y) + 1e-7
    assert error.max() <= (1 + 32) * skip_below * greatest / len(y) + 1e-7


def greatest_weight(x, y, *refs):
    stats = ms_kernels.row_statistics(x, y, *refs, epsilon=None, backend="triton")
    return float((-torch.expm1(-torch.nn.functional.softplus(stats.neg_lse))).max())


def test_few_anchors_of_many_refs_lose_no_more(monkeypatch):
    """The gradient of the refs goes by blocks of refs: an anchor's weight is spread over all."""
    r, z = separated(800, 8, 200)
    # Of one class, so that their pulls on a ref do not cancel.
    x, y = r[:1] + 0.05 * r[:32], z[:1].expand(32)
    options.workspace_bytes = 1 << 30

    def both(skip_below):
        options.skip_below = skip_below
        a, b = x.clone().requires_grad_(), r.clone().requires_grad_()
        multi_similarity_loss(
            a, y, b, z, epsilon=None, beta=0.1, reduction="sum", backend="triton"
        ).backward()
        return a.grad, b.grad

    skip_below = 0.1
    (dx, dr), (near_dx, near_dr) = both(0.0), both(skip_below)
    error_dx = (dx - near_dx).norm(dim=1) * x.norm(dim=1)
    error_dr = (dr - near_dr).norm(dim=1) * r.norm(dim=1)
    assert error_dx.max() <= skip_below + 1e-6
    assert error_dr.sum() <= skip_below * len(x) + 1e-5


def test_partial_sums_stay_within_the_budget(monkeypatch):
    seen = []
    real = launch_negatives._partials
    monkeypatch.setattr(
        launch_negatives, "_partials", lambda *args: seen.append(real(*args)) or seen[-1]
    )
    x, y, _, _ = on_device(make_batch(97, None, 20, SPECS["default"], torch.float32))
    options.workspace_bytes = 2500
    multi_similarity_loss(x, y, backend="triton")
    held = sum(t.numel() * t.element_size() for partials in seen for t in partials)
    assert 0 < held <= 2500


def test_lists_of_tiles_stay_within_the_budget(monkeypatch):
    sizes = {}
    lists = launch_tiles.Launch.lists

    def record(self, budget):
        for count, found in enumerate(lists(self, budget)):
            sizes["lists"] = count + 1
            sizes["list bytes"] = found.tiles.numel() * 4
            yield found

    monkeypatch.setattr(launch_tiles.Launch, "lists", record)
    options.workspace_bytes = 32
    x, y, _, _ = on_device(make_batch(97, None, 20, SPECS["default"], torch.float32))
    leaf = x.clone().requires_grad_()
    multi_similarity_loss(leaf, y, backend="triton").backward()
    # Four blocks of rows with four entries each.
    if interpreted():
        assert sizes == {"lists": 2, "list bytes": 32}
