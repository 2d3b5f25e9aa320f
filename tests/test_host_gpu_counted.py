"""Losses, statistics and gradients from one launch of the CUDA kernels, executed on the CPU."""

import distances
import pytest
import torch
from cases import DTYPES, SPECS, assert_within_budget, case_id, make_batch
from family import KERNELS, MININGS, batch, name_of
from host_gpu import build
from host_gpu.host import Host
from host_gpu.serve import few_tiles_are_many, serve
from judge import check_counted
from rounding import Rounding

from ms_kernels import pair_loss, row_statistics
from ms_kernels.backends import cuda
from ms_kernels.backends.interface import Side
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec
from ms_kernels.settings import options

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

PATHS = ["one_launch", "small", "by_tiles"]
# Tiles know the MS loss alone.
CASES = [
    *[(path, rule, mining) for path in PATHS[:2] for rule in KERNELS for mining in MININGS],
    *[("by_tiles", KERNELS[0], mining) for mining in MININGS[:2]],
]

SPEC = ("weighting", "mining", "max_positive_similarity", "normalize", "distance")


@pytest.fixture
def path(request):
    return request.param


@pytest.fixture
def backend(monkeypatch, path):
    return serve(monkeypatch, build.module(), path)


EVERY_PATH = pytest.mark.parametrize("path", PATHS, indirect=True)


def sides_of(tensors, ids=(None, None)):
    x, y, *refs = tensors
    return Side(x, y, ids[0]), Side(*refs, ids[1]) if refs else None


def counted(tensors, spec, dloss, ids=(None, None)):
    """Row losses, statistics and the gradients that there are."""
    anchors, candidates = sides_of(tensors, ids)
    how = spec, True, candidates is not None, dloss, None, False
    losses, stats, dx, dr, sums = cuda.counted_loss(anchors, candidates, *how)
    assert sums is None and (dr is None) == (candidates is None)
    return [losses, *stats, dx, *([] if dr is None else [dr])]


def exact(tensors, spec, dloss, ids=(None, None)):
    x, y, *refs = (t.double() if t.is_floating_point() else t for t in tensors)
    known = {} if ids[0] is None else {"ids": ids[0], "ref_ids": ids[1]}
    rules = {**{name: getattr(spec, name) for name in SPEC}, **known, "backend": "reference"}
    leaves = [x.requires_grad_(), *(r.requires_grad_() for r in refs[:1])]
    losses = pair_loss(leaves[0], y, *leaves[1:], *refs[1:], **rules, reduction="none")
    gradients = torch.autograd.grad(losses, leaves, torch.ones_like(losses) * dloss)
    stats = row_statistics(x.detach(), y, *(r.detach() for r in refs), **rules)
    return [losses.detach(), *stats, *gradients]


def assert_exact(tensors, spec, dloss=None, ids=(None, None)):
    got = counted(tensors, spec, dloss, ids)
    for found, want in zip(
        got, exact(tensors, spec, 1 if dloss is None else dloss, ids), strict=True
    ):
        torch.testing.assert_close(found, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("path", "weighting", "mining"),
    CASES,
    indirect=["path"],
    ids=lambda value: value if isinstance(value, str) else name_of(value),
)
def test_every_rule(backend, weighting, mining):
    """Losses are worth 1, or -1 to 2 each; samples are told by their index or by ids: in turns."""
    spec, worth = PairSpec(weighting, mining), torch.linspace(-1, 2, 40, dtype=torch.float64)
    if (KERNELS.index(weighting) + MININGS.index(mining)) % 2:
        assert_exact(batch(40, None, 9), spec, worth)
        assert_exact(batch(30, 70, 4), spec, None, (torch.arange(30), torch.arange(55, -15, -1)))
    else:
        assert_exact(batch(40, None, 9), spec, None, (torch.arange(40) // 2, None))
        assert_exact(batch(40, 70, 4), spec, worth)


@EVERY_PATH
def test_options_of_pairs(backend):
    tensors = batch(30, 50, 5)
    for spec in (PairSpec(max_positive_similarity=0.6), PairSpec(normalize=False)):
        assert_exact(tensors, spec)
        assert_exact(tensors[:2], spec)


@pytest.mark.parametrize("path", PATHS[:2], indirect=True)
@pytest.mark.parametrize("distance", distances.DISTANCES)
@pytest.mark.parametrize("weighting", distances.RULES, ids=name_of)
def test_distances(backend, weighting, distance):
    worth = torch.linspace(1, 2, 30, dtype=torch.float64)
    turn = distances.RULES.index(weighting) + distances.DISTANCES.index(distance)
    spec = PairSpec(weighting, distances.MININGS[turn % 6], distance=distance)
    assert_exact(distances.batch(30, None, 7), spec, worth)
    assert_exact(distances.batch(30, 45, 7), spec, worth)


@EVERY_PATH
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("shape", [(70, None, 48), (40, 90, 20)], ids=case_id)
@pytest.mark.parametrize("name", ["default", "unmined"])
def test_errors_stay_within_the_budget(backend, name, shape, dtype):
    check_counted(make_batch(*shape, SPECS[name], dtype), SPECS[name], dtype, backend)


@pytest.mark.parametrize("path", PATHS[:2], indirect=True)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=case_id)
@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_errors_of_every_rule_stay_within_the_budget(backend, weighting, dtype):
    """Of the hardest pairs, the loss and its gradient; sums follow, to the bits, where the
    statistics have a launch of the same path."""
    x, y = batch(70, None, 20, dtype)
    wide = x.double().requires_grad_()
    loss = pair_loss(wide, y, weighting=weighting, backend="reference")
    want = [loss.detach(), *torch.autograd.grad(loss, wide)]
    known = row_statistics(wide.detach(), y, weighting=weighting, backend="reference")
    leaf = x.requires_grad_()
    loss, stats = pair_loss(leaf, y, weighting=weighting, backend=backend, return_statistics=True)
    got = [loss.detach(), *torch.autograd.grad(loss, leaf), *stats[:2]]
    floors = Rounding((x.detach(), y), weighting, mine.NoMining(), backend=backend)
    budgets = [*floors.step("mean"), floors.hardest_positive, floors.hardest_negative]
    for found, wanted, budget in zip(got, [*want, *known[:2]], budgets, strict=True):
        assert_within_budget(found, None, wanted, budget)
    assert torch.equal(stats.pos_kept, known.pos_kept)
    assert torch.equal(stats.neg_kept, known.neg_kept)


@EVERY_PATH
@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
def test_bits_are_those_of_the_calls_that_do_one_thing(monkeypatch, path, backend, dtype):
    """A small batch's statistics alone go the road of any batch, whose sums have another order."""
    rules = [weigh.MultiSimilarity(), *([weigh.NTXent(0.2)] if path == "one_launch" else [])]
    for tensors in (batch(70, None, 20, dtype), batch(40, 70, 9, dtype)):
        sides = sides_of(tensors)
        worth = torch.linspace(1, 2, len(tensors[0])).to(cuda.row_statistics(*sides, PairSpec())[0])
        for spec in (PairSpec(rule) for rule in rules):
            found = counted(tensors, spec, worth)
            how = spec, True, len(tensors) == 4, worth
            losses, kept, *gradients = cuda.loss_and_gradient(*sides, *how)
            assert torch.equal(found[0], losses)
            assert torch.equal(found[5] + found[6], kept)
            assert all(map(torch.equal, found[8:], (g for g in gradients if g is not None)))
            alone = cuda.row_statistics(*sides, spec)
            if path != "small":
                assert all(map(torch.equal, found[1:8], alone))
            with monkeypatch.context() as patch:
                patch.setattr(options, "_workspace_bytes", 0)
                assert all(map(torch.equal, counted(tensors, spec, worth), found))


def test_tiles_that_no_pair_is_kept_of_tell_the_hardest(monkeypatch, tmp_path):
    """A loss alone would not look at negatives of a far class."""
    new = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64}
    y = torch.arange(256) // 128
    x = torch.tensor([1.0, -1.0])[y, None] + 0.1 * torch.randn(256, 5, **new)
    for module in (
        build.module(),
        build.module(few_tiles_are_many(tmp_path / "csrc"), ("tiled_float64",)),
    ):
        serve(monkeypatch, module, "by_tiles")
        assert_exact((x, y), PairSpec())
        assert_exact((x, y, x.flip(0) + 0.01, y.flip(0)), PairSpec())
        found = counted((x, y), PairSpec(), None)
        assert not found[6].any() and found[2].isfinite().all()


@pytest.mark.parametrize("path", PATHS[:1], indirect=True)
def test_triplets_of_more_than_one_round(monkeypatch, backend):
    tensors = [torch.randn(100, 5, dtype=torch.float64), torch.arange(100) * 7 % 3 // 2]
    assert_exact(tensors, PairSpec(weigh.Triplet(0.3)), torch.linspace(1, 2, 100).double())
    monkeypatch.setattr(options, "_workspace_bytes", 0)
    assert_exact(tensors, PairSpec(weigh.Triplet(0.3)))


@EVERY_PATH
def test_a_row_that_is_not_finite(path, backend):
    """Nothing is known of it, on every road as on the reference's."""
    x, y, r, z = batch(40, 70, 8)
    x[33, 1] = torch.inf
    for weighting in KERNELS if path == "one_launch" else KERNELS[:1]:
        losses, *stats, dx, dr = counted((x, y, r, z), PairSpec(weighting), None)
        others = torch.arange(40) != 33
        for array in (losses, *stats[:4]):
            assert array[33].isnan() and not array[others].isnan().any()
        assert stats[4][33] == stats[5][33] == 0 and dx[33].isnan().all() and dr.isnan().all()


@EVERY_PATH
def test_sides_without_rows(backend):
    x, y = batch(5, None, 4)
    for tensors in ((x[:0], y[:0]), (x[:0], y[:0], x, y), (x, y, x[:0], y[:0])):
        assert_exact(tensors, PairSpec())


@EVERY_PATH
def test_gradients_that_nobody_wants(backend):
    tensors = batch(30, 50, 5)
    want = counted(tensors, PairSpec(), None)
    for need in ((False, False), (True, False), (False, True)):
        found = cuda.counted_loss(*sides_of(tensors), PairSpec(), *need, None, None, False)
        for array, needed, same in zip(found[2:4], need, want[8:], strict=True):
            assert (array is not None) == needed and (not needed or torch.equal(array, same))
        assert all(map(torch.equal, (found.losses, *found.stats), want[:8]))


@EVERY_PATH
def test_options_that_learn_go_another_road(backend):
    found = cuda.counted_loss(
        *sides_of(batch(30, None, 5)), PairSpec(), True, False, None, torch.ones(3), True
    )
    assert found is None


@EVERY_PATH
@pytest.mark.parametrize("reduction", ["mean", "sum", "mean_valid"])
@pytest.mark.parametrize("shape", [(130, None, 40), (70, 300, 33), (300, 70, 33)], ids=str)
def test_a_step_launches_what_one_without_statistics_does(monkeypatch, path, shape, reduction):
    host = Host(monkeypatch, build.module(), path)
    tensors = batch(*shape, torch.float32)

    def launches(rule, **chosen):
        def step():
            x, y, *refs = tensors
            leaves = [side.detach().requires_grad_() for side in (x, *refs[:1])]
            given = leaves[0], y, *leaves[1:], *refs[1:]
            loss = pair_loss(*given, weighting=rule, reduction=reduction, backend="cuda", **chosen)
            loss = loss[0] if isinstance(loss, tuple) else loss
            loss.backward()

        return len(host.launches_of(step))

    weight = torch.linspace(0, 2, shape[0])
    rules = [weigh.MultiSimilarity(), weigh.NTXent(0.2), weigh.Triplet(0.2)]
    for rule in rules[: 2 if path == "small" else 3]:  # which does not list triplets
        plain = launches(rule)
        assert plain == 1 or (path == "by_tiles" and rule == weigh.MultiSimilarity())
        assert launches(rule, return_statistics=True) == plain
        assert launches(rule, sample_weight=weight, return_statistics=True) == plain
        assert launches(rule, anchor_mask=weight > 1) == plain
