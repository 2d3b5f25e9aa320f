"""Losses, statistics and gradients of Triton from one scan: those of its functions one by one.

On a GPU if there is one, else in Triton's interpreter.
"""

import math

import pytest
import rounding
import torch
from cases import SPECS, Batch, assert_within_budget, make_batch
from family import KERNELS, MININGS, batch, case_of, name_of
from judge import floors_of, gradients

import ms_kernels
from ms_kernels import multi_similarity_loss, pair_loss, reference, settings

pytest.importorskip("triton")
if "triton" not in ms_kernels.backends.dispatch.built():
    pytest.skip(ms_kernels.backends()["triton"].note, allow_module_level=True)

from ms_kernels.backends import triton as backend  # noqa: E402
from ms_kernels.backends.interface import Side  # noqa: E402
from ms_kernels.backends.triton import launch_ranked, launch_step, tape  # noqa: E402
from ms_kernels.backends.triton.tiles import interpreted  # noqa: E402
from ms_kernels.rules import mining as mine  # noqa: E402
from ms_kernels.rules import weighting as weigh  # noqa: E402
from ms_kernels.rules.spec import DISTANCES, PairSpec  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"
SHAPES = [(70, None, 16), (40, 90, 5)]  # several tiles in self mode and of candidates
# Every rule with every mining rule; in the interpreter with every third, in self mode and with
# candidates by turns.
PAIRS = [
    (shape, weighting, mining)
    for i, weighting in enumerate(KERNELS)
    for j, mining in enumerate(MININGS)
    for k, shape in enumerate(SHAPES)
    if not interpreted() or ((i - j) % 3 == 0 and (i + j) % 2 == k)
]


@pytest.fixture(autouse=True)
def no_tapes():
    tape.forget()
    yield
    tape.forget()


def on_device(sides):
    return [side.to(DEVICE) for side in sides]


def counted(sides, backend, **rules):
    """Loss, statistics and the gradient of every side, of anchors that count differently."""
    x, y, *refs = sides
    leaves = [side.detach().requires_grad_() for side in (x, *refs[:1])]
    weight = torch.linspace(-1, 2, len(x), dtype=torch.float64).to(x)
    rules = {"return_statistics": True, "sample_weight": weight, **rules}
    loss, stats = pair_loss(leaves[0], y, *leaves[1:], *refs[1:], backend=backend, **rules)
    return loss.detach(), stats, torch.autograd.grad(loss, leaves)


def same(got, want):
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def assert_as_defined(sides, **rules):
    """As the reference says, and statistics to the bits of `row_statistics`."""
    loss, stats, found = counted(sides, "triton", **rules)
    exact, defined, wanted = counted(sides, "reference", **rules)
    same(loss, exact)
    same(found, wanted)
    for got, want in zip(stats[:2] + stats[4:6], defined[:2] + defined[4:6], strict=True):
        same(got, want)
    rules = {k: v for k, v in rules.items() if k != "reduction"}
    alone = ms_kernels.row_statistics(*sides, backend="triton", **rules)
    assert all(map(torch.equal, stats, alone))


@pytest.mark.parametrize(("shape", "weighting", "mining"), PAIRS, ids=case_of)
def test_every_rule(shape, weighting, mining):
    assert_as_defined(on_device(batch(*shape)), weighting=weighting, mining=mining)


@pytest.mark.parametrize("reduction", ["sum", "mean_valid"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reductions_and_ids(shape, reduction):
    n, m, _ = shape
    ids = {"ids": torch.arange(n, device=DEVICE) // 2}
    if m is not None:
        ids["ref_ids"] = torch.arange(m, device=DEVICE) // 2
    for weighting, mining in (
        (weigh.MultiSimilarity(), mine.MultiSimilarityMining()),
        (weigh.SupCon(0.2), mine.TopKMining(3)),
        (weigh.Triplet(0.3), mine.NoMining()),
    ):
        rules = {"weighting": weighting, "mining": mining, "reduction": reduction, **ids}
        assert_as_defined(on_device(batch(*shape)), **rules)


@pytest.mark.parametrize("distance", DISTANCES[1:])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_distances(shape, distance):
    for weighting in (weigh.Contrastive(-0.2, -0.9), weigh.NTXent(0.2)):
        rules = {"weighting": weighting, "mining": mine.SemiHardMining(0.5), "distance": distance}
        assert_as_defined(on_device(batch(*shape)), **rules)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums_that_need_a_running_maximum_and_rows_as_they_are(shape):
    for weighting in (weigh.NTXent(0.005), weigh.Circle(0.9, 2000.0)):
        rules = {"weighting": weighting, "mining": mine.SemiHardMining(0.5)}
        assert_as_defined(on_device(batch(*shape)), **rules)
        assert_as_defined(on_device(batch(*shape)), normalize=False, **rules)


def test_triplets_in_rounds(monkeypatch):
    """Classes of more candidates than an anchor lists at once."""
    monkeypatch.setattr(launch_ranked, "LIST_BYTES", 0)
    monkeypatch.setattr(launch_ranked, "LEAST_RANKS", 8)
    for x, y, *refs in (batch(40, None, 6), batch(20, 40, 6)):
        given = x, y % 2, *refs[:1], *(z % 2 for z in refs[1:])
        for mining in (mine.NoMining(), mine.SemiHardMining(0.5)):
            assert_as_defined(on_device(given), weighting=weigh.Triplet(0.3), mining=mining)


# Rows held whole, panels, and of half rows exponentials that the scan keeps.
BUDGETS = [
    ((97, None, 20), "default", torch.float32),
    ((40, None, 100), "sharp", torch.float32),
    ((60, 40, 17), "default", torch.float32),
    *[((97, None, 20), "default", dtype) for dtype in (torch.bfloat16, torch.float16)],
    *[((97, None, 100), "unmined", dtype) for dtype in (torch.bfloat16, torch.float16)],
    ((37, 130, 70), "unmined", torch.bfloat16),
]


@pytest.mark.parametrize(("shape", "name", "dtype"), BUDGETS, ids=str)
def test_errors_stay_within_the_budget(shape, name, dtype, monkeypatch):
    scanned, real = [], launch_step.statistics
    monkeypatch.setattr(
        launch_step, "statistics", lambda *a: scanned.append(real(*a)) or scanned[-1]
    )
    x, y, r, z = make_batch(*shape, SPECS[name], dtype).to(DEVICE)
    sides, rules = Batch(x, y, r, z), vars(SPECS[name])
    wide = x.double(), y, None if r is None else r.double(), z
    seen = []

    def loss_of(*given, **options):
        loss, stats = multi_similarity_loss(*given, return_statistics=True, **options)
        seen.append((loss.detach(), stats))
        return loss

    exact = reference.row_statistics(*wide, **rules)
    exact_loss = reference.multi_similarity_loss(*wide, **rules)
    dense = [None] * 4, None, [None] * 2
    if not interpreted():
        dense = (
            reference.row_statistics(*sides, **rules),
            reference.multi_similarity_loss(*sides, **rules),
            gradients(reference.multi_similarity_loss, *sides, "mean", rules),
        )
    found = gradients(loss_of, *sides, "mean", {**rules, "backend": "triton"})
    loss, stats = seen[0]
    floors = rounding.of_spec(sides, SPECS[name])
    for k, floor in enumerate(floors.statistics(exact)):
        assert_within_budget(stats[k], dense[0][k], exact[k], floor)
    assert torch.equal(stats.pos_kept, exact.pos_kept)
    assert torch.equal(stats.neg_kept, exact.neg_kept)
    assert_within_budget(loss, dense[1], exact_loss, floors.loss("mean"))
    wanted = gradients(reference.multi_similarity_loss, *wide, "mean", rules)
    budgets = floors_of(sides, SPECS[name], "mean", "triton")
    for g, s, e, floor in zip(found, dense[2], wanted, budgets, strict=False):
        assert g.dtype == dtype
        assert_within_budget(g, s, e, floor)
    # Deep bfloat16 rows keep exponentials, whatever the losses are worth.
    deep = r is None and shape[2] == 100 and dtype == torch.bfloat16
    assert (scanned[0].stash is not None) == deep or not interpreted()


def sides_of(shape, ids=False):
    x, y, *refs = on_device(batch(*shape))
    numbers = torch.arange(len(x), device=DEVICE) if ids else None
    return Side(x, y, numbers), Side(*refs, numbers) if refs else None


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_what_is_not_wanted_is_left_out(shape):
    """Either gradient, both or none; with ones for dloss, or none given."""
    anchors, candidates = sides_of(shape)
    ones = torch.ones(len(anchors.labels), dtype=torch.float64, device=DEVICE)
    both = candidates is not None
    for spec in (PairSpec(), PairSpec(weigh.Triplet(0.3), mine.NoMining())):
        losses, _, *plain = backend.loss_and_gradient(anchors, candidates, spec, True, both)
        for dx, dr, dloss in (
            (False, False, None),
            (False, both, ones),
            (True, False, ones),
            (True, both, None),
        ):
            found = backend.counted_loss(anchors, candidates, spec, dx, dr, dloss, None, False)
            same(found.losses, losses)
            assert found.weight_sums is None
            for got, want, wanted in zip(found[2:4], plain, (dx, dr), strict=True):
                assert (got is not None) == wanted
                if got is not None:
                    same(got, want)


def test_options_that_learn_go_their_own_way():
    values = torch.tensor([2.0, 50.0, 0.5], dtype=torch.float64, device=DEVICE)
    for weighs in (False, True):
        how = PairSpec(), True, False, None, values, weighs
        assert backend.counted_loss(*sides_of(SHAPES[0]), *how) is None


@pytest.mark.parametrize("weighting", [weigh.MultiSimilarity(), weigh.Triplet()], ids=name_of)
def test_a_row_that_is_not_finite(weighting):
    x, y, r, z = on_device(batch(40, 90, 5))
    x[3, 1] = math.inf
    others = torch.arange(40, device=DEVICE) != 3
    for refs in ((), (r, z)):
        anchors, candidates = Side(x, y, None), Side(r, z, None) if refs else None
        spec = PairSpec(weighting, mine.NoMining())
        losses, stats, dx, dr, _ = backend.counted_loss(
            *(anchors, candidates, spec, True, bool(refs)), torch.ones_like(x[:, 0]), None, False
        )
        spoilt = ~others if refs else torch.ones_like(others)
        for numbers in (losses, *stats[:4], stats[6], dx[:, 0]):
            assert torch.equal(numbers.isnan(), spoilt)
        assert not stats[4][spoilt].any() and not stats[5][spoilt].any()
        assert dr is None or dr.isnan().all()


def test_bits_do_not_depend_on_the_budget(monkeypatch):
    """In the interpreter 256 rows are one launch of the scan."""
    sides = on_device(batch(260, None, 5, torch.float32))
    rules = {"weighting": weigh.SupCon(0.2), "mining": mine.SemiHardMining(0.5)}
    want = counted(sides, "triton", **rules)
    monkeypatch.setattr(settings.options, "_workspace_bytes", 0)
    loss, stats, found = counted(sides, "triton", **rules)
    assert torch.equal(loss, want[0]) and all(map(torch.equal, stats, want[1]))
    assert all(map(torch.equal, found, want[2]))


@pytest.mark.parametrize("shape", [(0, None, 4), (1, None, 4), (0, 5, 4), (5, 0, 4)], ids=str)
def test_sides_without_rows_and_of_one(shape):
    n, m, d = shape
    x = torch.ones(n, d, dtype=torch.float64, device=DEVICE)
    anchors, candidates = Side(x, torch.arange(n, device=DEVICE), None), None
    if m is not None:
        r = torch.ones(m, d, dtype=torch.float64, device=DEVICE)
        candidates = Side(r, torch.arange(m, device=DEVICE), None)
    spec = PairSpec()
    for dloss in (None, torch.ones_like(x[:, 0])):
        how = spec, True, m is not None, dloss, None, False
        losses, stats, dx, dr, _ = backend.counted_loss(anchors, candidates, *how)
        alone = backend.row_statistics(anchors, candidates, spec)
        assert all(map(torch.equal, stats, alone))
        assert losses.shape == (n,) and dx.shape == (n, d) and not losses.any() and not dx.any()
        assert dr is None or (dr.shape == (m, d) and not dr.any())
