"""The other pair losses in Triton: on a GPU if there is one, else in Triton's interpreter."""

import math

import pytest
import torch
from family import KERNELS, MININGS, assert_step, batch, case_of, name_of, step

import ms_kernels
from ms_kernels import pair_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.settings import options

pytest.importorskip("triton")
if "triton" not in ms_kernels.backends.dispatch.built():
    pytest.skip(ms_kernels.backends()["triton"].note, allow_module_level=True)

from ms_kernels.backends.triton import launch_ranked  # noqa: E402
from ms_kernels.backends.triton.tiles import interpreted  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"


def on_device(sides):
    return [side.to(DEVICE) for side in sides]


# Every weighting with bounds on both sides and with none, every mining rule with one weighting.
CASES = [
    *[((70, None, 16), rule, mine.SemiHardMining(0.5)) for rule in KERNELS],
    *[((40, 90, 5), rule, mine.NoMining()) for rule in KERNELS],
    *[((70, None, 16), weigh.NTXent(0.2), m) for m in MININGS if m != mine.SemiHardMining(0.5)],
    # Depths that scan and gradient take in other pieces: bounds lie beside the hardest pairs.
    *[((40, None, d), weigh.NTXent(0.2), mine.HardestMining()) for d in (20, 40, 64)],
    ((40, 50, 64), weigh.Contrastive(1.0, -1.0), mine.HardestMining()),
]


# One of each kind of sum.
FEW = [weigh.Contrastive(0.9, 0.1), weigh.NTXent(0.2), weigh.SupCon(0.2), weigh.Circle()]


@pytest.mark.parametrize(("shape", "weighting", "mining"), CASES, ids=case_of)
def test_values_and_gradients(shape, weighting, mining):
    sides = on_device(batch(*shape))
    rules = {"weighting": weighting, "mining": mining}
    want = step(sides, "reference", **rules)
    for got, exact in zip(step(sides, "triton", **rules), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


# The rules compute in float32, whatever the rows are: those of 16 bits have every other one.
HALF = {torch.bfloat16: KERNELS[::2], torch.float16: KERNELS[1::2]}


@pytest.mark.parametrize(
    ("weighting", "dtype"),
    [
        *[(rule, torch.float32) for rule in KERNELS],
        *[
            (rule, dtype)
            for dtype, rules in HALF.items()
            for rule in (rules if interpreted() else KERNELS)
        ],
    ],
    ids=name_of,
)
def test_errors_stay_within_the_budget(weighting, dtype):
    sides = on_device(batch(60, None, 20))
    sides = [side.to(dtype) if side.is_floating_point() else side for side in sides]
    assert_step(sides, "triton", "mean", weighting=weighting)


@pytest.mark.parametrize("weighting", [weigh.Circle(), weigh.Contrastive()], ids=name_of)
def test_long_sums_of_a_tensor_core_do_not_drift(weighting):
    """It cuts each of them: of 400 numbers of the depth 50 times."""
    sides = on_device(batch(100, None, 400, torch.float32))
    assert_step(sides, "triton", "mean", weighting=weighting)


def assert_exact(sides, **rules):
    want = step(on_device(sides), "reference", **rules)
    for got, exact in zip(step(on_device(sides), "triton", **rules), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    "weighting",
    [weigh.NTXent(0.005), weigh.BinLifted(2.0, 400.0), weigh.Circle(0.9, 2000.0)],
    ids=name_of,
)
def test_sums_that_need_a_running_maximum(weighting):
    for sides in (batch(70, None, 8), batch(40, 70, 8)):
        assert_exact(sides, weighting=weighting)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_circle_too_great_for_its_exponentials(dtype):
    """Its exponents reach from -207 to 49; of float32 exp(-104) is 0 and exp(89) infinite."""
    sides = on_device(batch(60, None, 20))
    sides = [side.to(dtype) if side.is_floating_point() else side for side in sides]
    assert_step(sides, "triton", "mean", weighting=weigh.Circle(0.9, 256.0))


@pytest.mark.parametrize("mining", [mine.NoMining(), mine.SemiHardMining(0.5)], ids=name_of)
def test_the_hardest_negative_of_a_circle_need_not_have_the_greatest_exponent(mining):
    """Of an anchor at the pole: negatives at right angles, of z = -gamma m^2, and opposite ones, of
    z = 0, in another tile than they."""
    x = torch.randn(100, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 0.01
    x[:2, 0], x[2:50, 1], x[50:, 0] = x[:2, 0] + 1, x[2:50, 1] + 1, x[50:, 0] - 1
    y = torch.arange(100).clamp(min=1, max=50)
    for m, gamma in ((0.9, 2000.0), (-0.2, 2000.0)):
        rules = {"weighting": weigh.Circle(m, gamma), "mining": mining}
        assert_exact((x, y), **rules)
        assert_exact((x[:60], y[:60], x[::2], y[::2]), **rules)


@pytest.mark.parametrize("mining", [mine.NoMining(), mine.TopKMining(3)], ids=name_of)
def test_a_circle_of_rows_as_they_are(mining):
    for sides in (batch(70, None, 8), batch(40, 70, 8)):
        assert_exact(sides, weighting=weigh.Circle(0.25, 4.0), mining=mining, normalize=False)


@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_a_circle_that_overflows_is_infinite(reduction):
    """Similarities of 1e20, times 80 and squared, are too much for float32."""
    x, y = on_device(batch(40, None, 6, torch.float32))
    x *= 1e10
    rules = {"weighting": weigh.Circle(), "normalize": False, "reduction": reduction}
    loss, dx = step((x, y), "triton", **rules)
    want, _ = step((x, y), "reference", **rules)
    assert want.isinf().any() and not want.isnan().any()
    assert torch.equal(loss, want)
    assert dx.isnan().any()


@pytest.mark.parametrize("weighting", [weigh.NTXent(), weigh.Contrastive()], ids=name_of)
def test_deep_rows_go_by_panels(weighting, monkeypatch):
    monkeypatch.setattr(options, "_workspace_bytes", 1 << 14)
    sides = on_device(batch(70, 50, 130))
    rules = {"weighting": weighting, "mining": mine.MultiSimilarityMining(), "reduction": "sum"}
    want = step(sides, "reference", **rules)
    for got, exact in zip(step(sides, "triton", **rules), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("weighting", FEW, ids=name_of)
def test_a_row_that_is_not_finite(weighting):
    x, y, r, z = batch(40, 70, 8)
    x[33, 1] = math.inf
    rows, dx, dr = step(on_device((x, y, r, z)), "triton", weighting=weighting)
    others = torch.arange(40) != 33
    assert rows[33].isnan() and rows[others].isfinite().all()
    assert dx[33].isnan().all() and dx[others].isfinite().all() and dr.isnan().all()


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("weighting", FEW, ids=name_of)
def test_degenerate_batches(weighting, labels):
    y = torch.tensor(labels)
    x = torch.randn(len(y), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rules = {"weighting": weighting, "mining": mine.HardestMining(), "reduction": "mean_valid"}
    found = step(on_device((x, y)), "triton", **rules)
    for got, want in zip(found, step(on_device((x, y)), "reference", **rules), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_what_the_kernels_do_not_know():
    x, y = on_device(batch(20, None, 3))
    for weighting in (weigh.Contrastive(0.9, 1e-35),):
        with pytest.raises(ValueError, match="'triton' expected a rule that its kernels know"):
            pair_loss(x, y, weighting=weighting, backend="triton")


@pytest.mark.parametrize(
    ("n", "m", "mining"),
    [(50, None, mine.MultiSimilarityMining()), (24, 40, mine.NoMining())],
    ids=name_of,
)
def test_triplets_in_rounds(n, m, mining, monkeypatch):
    """Classes of more candidates than an anchor lists at once."""
    monkeypatch.setattr(launch_ranked, "LIST_BYTES", 0)
    monkeypatch.setattr(launch_ranked, "LEAST_RANKS", 16)
    new = {"generator": torch.Generator().manual_seed(n)}
    sides = []
    for count in (n,) if m is None else (n, m):
        sides += [torch.randn(count, 5, dtype=torch.float64, **new)]
        sides += [torch.arange(count) * 7 % 3 // 2]
    rules = {"weighting": weigh.Triplet(0.3), "mining": mining}
    want = step(sides, "reference", **rules)
    for got, exact in zip(step(on_device(sides), "triton", **rules), want, strict=True):
        torch.testing.assert_close(got.cpu(), exact, rtol=1e-9, atol=1e-11)
