"""The family of pair losses in the CUDA kernels, executed on the CPU."""

import math

import pytest
import torch
from family import KERNELS, MININGS, UNKNOWN, assert_step, batch, case_of, name_of, step
from host_gpu import build
from host_gpu.runtime import Runtime
from host_gpu.serve import serve

from ms_kernels.backends import cpu, cpu_call, cuda_call, native_call
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh
from ms_kernels.rules.spec import PairSpec
from ms_kernels.settings import options

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

# Every weighting with bounds on both sides and with none, every mining rule with one weighting.
CASES = [
    *[((70, None, 16), rule, mine.SemiHardMining(0.5)) for rule in KERNELS],
    *[((40, 90, 5), rule, mine.NoMining()) for rule in KERNELS],
    *[((70, None, 16), weigh.NTXent(0.2), m) for m in MININGS if m != mine.SemiHardMining(0.5)],
]


@pytest.fixture(params=["one_launch", "small"])
def backend(monkeypatch, request):
    return serve(monkeypatch, build.module(), request.param)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(("shape", "weighting", "mining"), CASES, ids=case_of)
def test_values_and_gradients(backend, shape, weighting, mining, reduction):
    sides = batch(*shape)
    rules = {"weighting": weighting, "mining": mining, "reduction": reduction}
    want = step(sides, "reference", **rules)
    for got, exact in zip(step(sides, backend, **rules), want, strict=True):
        torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_errors_stay_within_the_budget(backend, weighting, dtype):
    x, y = batch(70, None, 20)
    assert_step((x.to(dtype), y), backend, "mean", weighting=weighting)


@pytest.mark.parametrize("weighting", [weigh.NTXent(0.005), weigh.Circle(0.9, 256.0)], ids=name_of)
def test_exponents_far_apart_and_panel_by_panel(backend, weighting, monkeypatch):
    monkeypatch.setattr(options, "_workspace_bytes", 0)
    for sides in (batch(70, None, 8), batch(40, 70, 8)):
        want = step(sides, "reference", weighting=weighting)
        for got, exact in zip(step(sides, backend, weighting=weighting), want, strict=True):
            torch.testing.assert_close(got, exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "rule", [weigh.NTXent, weigh.SupCon, weigh.NCA, weigh.DecoupledContrastive]
)
def test_exponents_that_float32_cannot_raise(backend, rule, reduction):
    """Similarities up to 1 over 0.005 are exponents up to 200; exp(89) overflows."""
    for sides in (batch(70, None, 8), batch(40, 70, 8)):
        narrow = [v.float() if v.is_floating_point() else v for v in sides]
        assert_step(narrow, backend, reduction, weighting=rule(0.005))


@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_a_row_that_is_not_finite(backend, weighting):
    x, y, r, z = batch(40, 70, 8)
    x[33, 1] = math.inf
    rows, dx, dr = step((x, y, r, z), backend, weighting=weighting)
    others = torch.arange(40) != 33
    assert rows[33].isnan() and rows[others].isfinite().all()
    assert dx[33].isnan().all() and dx[others].isfinite().all() and dr.isnan().all()


@pytest.mark.parametrize("labels", [[0], [0, 0, 0], [0, 1, 2]], ids=str)
@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_degenerate_batches(backend, weighting, labels):
    y = torch.tensor(labels)
    x = torch.randn(len(y), 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    rules = {"weighting": weighting, "mining": mine.HardestMining(), "reduction": "mean_valid"}
    found = step((x, y), backend, **rules)
    for got, want in zip(found, step((x, y), "reference", **rules), strict=True):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("n", "m", "mining"),
    [
        *[(100, None, mining) for mining in MININGS],
        *[(40, 140, MININGS[0]), (140, 40, MININGS[1])],
    ],
    ids=str,
)
def test_triplets_of_long_lists(backend, n, m, mining, monkeypatch):
    """Classes of more candidates than one round compares, 64; in one panel and in several."""
    new = {"generator": torch.Generator().manual_seed(n)}
    sides = []
    for count in (n,) if m is None else (n, m):
        sides += [torch.randn(count, 5, dtype=torch.float64, **new)]
        sides += [torch.arange(count) * 7 % 3 // 2]
    rules = {"weighting": weigh.Triplet(0.3), "mining": mining}
    want = step(sides, "reference", **rules)
    with Runtime(build.module()).recorded() as calls:
        got = step(sides, backend, **rules)
    # One for the losses and one for the gradients, however many rounds they take.
    assert sum(call.launches for call in calls) == 2
    for found, exact in zip(got, want, strict=True):
        torch.testing.assert_close(found, exact, rtol=1e-9, atol=1e-11)
    monkeypatch.setattr(options, "_workspace_bytes", 0)
    for found, same in zip(step(sides, backend, **rules), got, strict=True):
        assert torch.equal(found, same)


@pytest.mark.parametrize("rules", UNKNOWN, ids=["weighting", "mining"])
def test_an_unknown_rule_is_refused(backend, monkeypatch, rules):
    monkeypatch.setattr(PairSpec, "native_rules", lambda *_: rules)
    # What is known of a loss is kept.
    for module in (cpu, cpu_call, cuda_call):
        monkeypatch.setattr(module, "native_spec", native_call.native_spec.__wrapped__)
    for refuses in (backend, "cpu"):
        with pytest.raises(ValueError, match="rules: expected codes that exist, got"):
            step(batch(70, None, 8), refuses, weighting=weigh.NTXent(0.2))
