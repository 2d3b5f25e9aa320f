"""Distances as similarities: every rule, against differences in float64."""

import itertools

import every_backend
import pytest
import torch
from distances import DISTANCES, MININGS, RULES, batch, step

from ms_kernels import pair_loss, reference, row_statistics
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

BACKENDS = [name for name in ("cpu", "panels") if name in every_backend.NAMES]


@pytest.mark.parametrize("m", [None, 131])
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
@pytest.mark.parametrize("distance", DISTANCES)
def test_every_rule(distance, normalize, m):
    """Of every backend against one run of the dense reference, which takes most of the time."""
    tensors, some = batch(97, m, 19), 0.0
    for weighting, mining in itertools.product(RULES, MININGS):
        rules = {"weighting": weighting, "mining": mining}
        rules |= {"distance": distance, "normalize": normalize}
        dense = reduced_both_ways(tensors, **rules)
        for backend, (reduction, want) in itertools.product(BACKENDS, dense.items()):
            got = step(tensors, backend, reduction=reduction, **rules)
            for a, b in zip(got, want, strict=True):
                scale = b.abs().max().clamp(min=1)
                torch.testing.assert_close(
                    a / scale, b / scale, rtol=0, atol=1e-12, msg=f"{backend} {reduction} {rules}"
                )
            some += float(want[1].abs().max())
    assert some > len(BACKENDS)


def reduced_both_ways(tensors, **rules):
    """{reduction: what `step` finds by the dense reference}, of one forward pass."""
    leaves = [t.clone().requires_grad_() for t in tensors[::2]]
    given = [t for pair in zip(leaves, tensors[1::2], strict=True) for t in pair]
    rows = pair_loss(*given, backend="reference", reduction="none", **rules)
    weighed = (rows * torch.linspace(1, 2, len(rows), dtype=rows.dtype)).sum()
    of_mean = torch.autograd.grad(rows.mean(), leaves, retain_graph=True)
    of_rows = torch.autograd.grad(weighed, leaves)
    rows = rows.detach()
    return {"mean": [rows.mean(), *of_mean], "none": [rows, *of_rows]}


def test_the_reference_is_less_the_distance():
    x, _, r, _ = batch(23, 17, 5)
    found = reference.similarities(x, r, "euclidean")
    for i, j in itertools.product(range(23), range(17)):
        assert found[i, j] == pytest.approx(-float((x[i] - r[j]).norm()), rel=1e-14)
    torch.testing.assert_close(reference.similarities(x, r, "squared_euclidean"), -(found**2))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_gradcheck(backend, distance):
    x, y, r, z = batch(13, 11, 4, classes=3)
    leaves = x.requires_grad_(), r.requires_grad_()
    options = {"distance": distance, "normalize": False, "backend": backend}

    def loss(x, r):
        return pair_loss(x, y, r, z, weighting=weigh.NTXent(2.0), **options)

    assert torch.autograd.gradcheck(loss, leaves)
    if backend == "reference":
        assert torch.autograd.gradgradcheck(loss, leaves)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_near_together_and_far_from_the_origin(backend, distance):
    """Rows a hundredth apart at 1000: of products nothing would be left of such distances."""
    generator = torch.Generator().manual_seed(0)
    x = 1000 + torch.randn(400, 32, generator=generator) * 0.01
    tensors = x, torch.arange(400) // 4
    unit = 0.1 if distance == "euclidean" else 0.01
    for weighting in (weigh.Triplet(unit / 8), weigh.Contrastive(-unit / 2, -unit / 2)):
        rules = {"weighting": weighting, "distance": distance, "normalize": False}
        rules["reduction"] = "sum"
        loss, dx = step(tensors, backend, torch.float32, **rules)
        want, exact = step(tensors, "reference", **rules)
        assert want > 1 and exact.norm() > 1
        # A hinge within the rounding of 0 may count as active in one and not in the other.
        torch.testing.assert_close(loss.double(), want, rtol=2e-6, atol=0)
        assert (dx.double() - exact).norm() < 2e-4 * exact.norm()


@pytest.mark.parametrize("learns", [False, True])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_row_far_from_all_the_others(backend, distance, learns):
    """Takes nothing from distances among the others, nor from their gradients."""
    x = torch.randn(64, 8, generator=torch.Generator().manual_seed(0)) * 0.01
    x[0] = 1e6
    found = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        margin = torch.tensor(-0.02, dtype=dtype, requires_grad=True) if learns else -0.02
        rule = weigh.Contrastive(margin, -0.03)
        leaf = x.to(dtype, copy=True).requires_grad_()
        how = {"backend": "auto" if learns and name == "cpu" else name, "reduction": "none"}
        given = leaf, torch.arange(64) // 2
        loss = pair_loss(*given, weighting=rule, distance=distance, normalize=False, **how)[2:]
        found.append([loss.detach().double(), torch.autograd.grad(loss.sum(), leaf)[0][2:]])
    for got, want in zip(*found, strict=True):
        assert want.norm() > 1e-3
        assert (got.double() - want).norm() < 1e-5 * want.norm()


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", [*BACKENDS, "reference"])
def test_equal_rows_pull_at_nothing(backend, distance):
    x = torch.eye(4)[torch.tensor([0, 0, 1, 1, 2, 2])]
    tensors = x, torch.tensor([0, 0, 1, 1, 2, 3])
    loss, dx = step(
        tensors, backend, torch.float32, weighting=weigh.Contrastive(0.0, -1.0), distance=distance
    )
    assert loss == pytest.approx(2 / 6)  # of the two equal rows of classes 2 and 3
    assert not dx.any()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_half_is_computed_in_float32(backend, distance, dtype):
    tensors = batch(300, None, 40, dtype)
    rules = {"weighting": weigh.MultiSimilarity(2.0, 5.0, -1.0), "distance": distance}
    loss, dx = step(tensors, backend, dtype, **rules)
    want, exact = step(tensors, "reference", **rules)
    eps = torch.finfo(dtype).eps
    assert loss.dtype == dx.dtype == dtype
    torch.testing.assert_close(loss.double(), want, rtol=eps, atol=0)
    torch.testing.assert_close(dx.double(), exact, rtol=eps, atol=1e-6)


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_squares_that_overflow_make_the_loss_nan(backend, distance):
    x = torch.ones(6, 3)
    x[0] = 3e30
    rules = {"weighting": weigh.NTXent(), "distance": distance, "normalize": False}
    loss, dx = step((x, torch.arange(6) // 2), backend, torch.float32, reduction="none", **rules)
    assert loss.isnan().all() and dx.isnan().all()


@pytest.mark.parametrize("distance", DISTANCES)
def test_every_build_of_the_cpu_kernels(distance):
    """Widths and heights that end within a vector and within a block; few pairs and many kept."""
    cpu = pytest.importorskip("ms_kernels._cpu")
    best = cpu.instruction_set()
    try:
        for n, d in ((5, 3), (97, 64), (257, 16), (389, 201)):
            tensors = batch(n, None, d)
            for weighting in (weigh.Contrastive(-1.1, -1.0), weigh.MultiSimilarity(2.0, 9.0, -1.0)):
                rules = {"weighting": weighting, "distance": distance}
                want = step(tensors, "reference", **rules)
                for name in cpu.instruction_sets():
                    cpu.use_instruction_set(name)
                    for a, b in zip(step(tensors, "cpu", **rules), want, strict=True):
                        torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-13)
    finally:
        cpu.use_instruction_set(best)


@pytest.mark.parametrize("distance", DISTANCES)
def test_the_same_bits_for_any_threads(distance):
    tensors = batch(700, None, 33, torch.float32, classes=90)
    rules = {"weighting": weigh.Triplet(0.2), "distance": distance, "backend": "cpu"}
    threads, found = torch.get_num_threads(), []
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append(step(tensors, dtype=torch.float32, **rules))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("distance", DISTANCES)
@pytest.mark.parametrize("mining", [mine.HardestMining(), mine.TopKMining(1)], ids=str)
@pytest.mark.parametrize("backend", [name for name in every_backend.NAMES if name != "reference"])
def test_a_copy_is_the_hardest_pair(monkeypatch, backend, mining, distance):
    """At distance 0, whatever is subtracted from 0 to tell it from the next."""
    backend = every_backend.served(monkeypatch, backend)
    x = torch.tensor([[1.0, 1.0], [1.0, 1.0], [-1.0, -1.0], [-1.0, -1.0]])
    for y, count in ((torch.tensor([0, 1, 0, 1]), "neg_kept"), (torch.arange(4) // 2, "pos_kept")):
        for normalize in (True, False):
            how = {"distance": distance, "normalize": normalize, "mining": mining}
            given = {**how, "weighting": weigh.Triplet(0.1)}
            found = row_statistics(x, y, **given, backend=backend)
            assert getattr(found, count).tolist() == [1] * 4
            want = pair_loss(x, y, **given, backend="reference")
            got = pair_loss(x, y, **given, backend=backend)
            torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
