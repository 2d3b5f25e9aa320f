"""Options that learn in the CUDA kernels, executed on the CPU."""

import pytest
import torch
from cases import DTYPES, case_id
from host_gpu import build
from host_gpu.host import Host
from host_gpu.serve import few_tiles_are_many, serve
from learned_options import MININGS, OPTIONS, batch, compare, scalar
from torch.autograd import gradcheck

from ms_kernels import MultiSimilarityMining, NoMining, ThresholdMining, pair_loss
from ms_kernels.backends import cpu, cuda
from ms_kernels.backends.interface import Side, Term
from ms_kernels.rules import weighting as rules
from ms_kernels.rules.spec import PairSpec
from ms_kernels.settings import options

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

EVERY_RULE = pytest.mark.parametrize(
    ("rule", "values"), OPTIONS, ids=lambda v: getattr(v, "__name__", "")
)
MULTI_SIMILARITY = OPTIONS[0]
OWN_MININGS = [NoMining(), MultiSimilarityMining()]


@pytest.fixture(params=["one_launch", "by_tiles"])
def path(monkeypatch, request):
    serve(monkeypatch, build.module(), request.param)
    return request.param


@pytest.fixture
def one_launch(monkeypatch):
    return serve(monkeypatch, build.module())


@pytest.mark.parametrize(
    ("rule", "name"),
    # Of m finite differences see the circle's factors move, which count as constants.
    [(rule, name) for rule, values in OPTIONS for name in values if name != "m"],
    ids=str,
)
def test_gradcheck_of_every_option(one_launch, rule, name):
    values = dict(OPTIONS)[rule]
    x, y = batch()
    # By a cap, so that no temperature is taken into the rows.
    given = {"max_positive_similarity": 0.99, "backend": one_launch}

    def loss(value):
        return pair_loss(x, y, weighting=rule(**{**values, name: value}), **given)

    assert gradcheck(loss, scalar(values[name]), atol=1e-6)


@pytest.mark.parametrize("mining", MININGS, ids=str)
@EVERY_RULE
def test_as_in_dense_pytorch(one_launch, rule, values, mining):
    given = {"mining": mining, "max_positive_similarity": 0.95}
    compare(rule, values, one_launch, (), distance="euclidean", reduction="none", **given)
    compare(rule, values, one_launch, batch(21, seed=1), reduction="mean_valid", **given)


@pytest.mark.parametrize("mining", OWN_MININGS, ids=str)
def test_by_tiles(monkeypatch, mining):
    backend = serve(monkeypatch, build.module(), "by_tiles")
    for refs in ((), batch(90, seed=1)):
        compare(*MULTI_SIMILARITY, backend, refs, n=150, mining=mining)


@pytest.fixture(scope="module")
def small_parts(tmp_path_factory):
    """A module with the plan of thousands of rows, for hundreds."""
    csrc = few_tiles_are_many(tmp_path_factory.mktemp("sources") / "csrc")
    return build.module(csrc, ("tiled_float64", "tiled_float16"))


def gradients(x, y, refs, rule, numbers, mining, learn, dtype=torch.float64, backend="cuda"):
    """Of what learns: "rows", "refs" and always the options."""
    given = [
        x.to(dtype).detach(),
        y,
        *(side.to(dtype).detach() if side.is_floating_point() else side for side in refs),
    ]
    sides = [given[at].requires_grad_() for at, name in ((0, "rows"), (2, "refs")) if name in learn]
    values = [scalar(number) for number in numbers]
    loss = pair_loss(*given, weighting=rule(*values), mining=mining, backend=backend)
    return torch.autograd.grad(loss, (*sides, *values))


LEARN = [(), ("rows",), ("refs",), ("rows", "refs")]


@pytest.mark.parametrize("learn", LEARN, ids=lambda names: "_".join(names) or "options")
@EVERY_RULE
def test_whatever_learns_beside_them(one_launch, rule, values, learn):
    x, y = batch(30)
    for refs in ((), batch(21, seed=1)):
        if "refs" in learn and not refs:
            continue
        given = x, y, refs, rule, values.values(), MultiSimilarityMining(), learn
        torch.testing.assert_close(
            gradients(*given), gradients(*given, backend="reference"), rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("learn", LEARN, ids=lambda names: "_".join(names) or "options")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=case_id)
def test_tiles_in_many_parts(monkeypatch, small_parts, learn, dtype):
    """To the same bits whatever the memory is and in whatever order blocks come."""
    serve(monkeypatch, small_parts, "by_tiles")
    rule, values = MULTI_SIMILARITY
    x, y = batch(260, 8)
    for refs in ((), batch(140, 8, seed=1)):
        if "refs" in learn and not refs:
            continue
        given = x, y, refs, rule, values.values(), MultiSimilarityMining(), learn
        found = gradients(*given, dtype)
        want = gradients(*given, backend="reference")
        tolerance = 1e-8 if dtype == torch.float64 else 2e-2
        for got, exact in zip(found, want, strict=True):
            assert (got.double() - exact).norm() <= tolerance * exact.norm()
        monkeypatch.setattr(options, "_workspace_bytes", 0)
        monkeypatch.setenv("HOST_GPU_BACKWARDS", "1")
        for got, same in zip(gradients(*given, dtype), found, strict=True):
            assert torch.equal(got, same)
        monkeypatch.undo()
        serve(monkeypatch, small_parts, "by_tiles")


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize(
    "rule", [rules.BinomialDeviance, rules.Circle, rules.SupCon, rules.Triplet], ids=str
)
def test_bits_do_not_hang_on_memory_or_order(monkeypatch, one_launch, rule, dtype):
    values, few = dict(OPTIONS)[rule].values(), 60 if rule is rules.Triplet else 150
    for refs in ((), batch(70, 8, seed=1)):
        given = *batch(few, 8), refs, rule, values, ThresholdMining(0.9, 0.05), ("rows",), dtype
        found = gradients(*given)
        assert all(gradient.any() for gradient in found)
        with monkeypatch.context() as changed:
            changed.setattr(options, "_workspace_bytes", 0)
            changed.setenv("HOST_GPU_BACKWARDS", "1")
            for got, same in zip(gradients(*given), found, strict=True):
                assert torch.equal(got, same)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=case_id)
@pytest.mark.parametrize("mining", OWN_MININGS, ids=str)
def test_errors_are_those_of_the_cpu_or_of_dense_pytorch(path, mining, dtype):
    """Of rows that stand for themselves: what their rounding did counts in neither."""
    x, y = batch(150, 16)
    x = x.to(dtype)
    for rule, values in OPTIONS[:3] if path == "one_launch" else OPTIONS[:1]:
        given = y, (), rule, values.values(), mining, ()
        exact = gradients(x.double(), *given, backend="reference")
        found = {
            name: gradients(x, *given, dtype, backend=name) for name in ("cuda", "cpu", "reference")
        }
        errors = {
            name: [float((g.double() - e).abs() / e.abs()) for g, e in zip(of, exact, strict=True)]
            for name, of in found.items()
        }
        for ours, native, dense in zip(*errors.values(), strict=True):
            assert ours <= 4 * max(native, dense) + 2**-22


def test_weight_sums_are_those_of_the_cpu(path):
    x, y = batch(100, 8)
    r, z = batch(70, 8, seed=1)
    given = OPTIONS if path == "one_launch" else OPTIONS[:1]
    for rule, values in given:
        spec, numbers = PairSpec(rule(), MultiSimilarityMining()), torch.tensor([*values.values()])
        for columns in (None, Side(r, z, None)):
            sides = Side(x, y, None), columns, spec, numbers.double()
            stats = [module.learned_statistics(*sides) for module in (cuda, cpu)]
            term = Term(stats[1], torch.linspace(-1, 2, 100, dtype=torch.float64))
            found = [module.learned_gradient(*sides, term, True, True) for module in (cuda, cpu)]
            for of in (stats, found):
                for got, want in zip(*of, strict=True):
                    if want is not None:
                        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


def test_what_is_not_finite_and_what_is_worth_nothing(path):
    x, y = batch(20)
    r, z = batch(30, seed=1)
    x[3, 2] = torch.nan
    for rule in (rules.MultiSimilarity, *([rules.NTXent] if path == "one_launch" else [])):
        refs, values = r.clone().requires_grad_(), [scalar(v) for v in dict(OPTIONS)[rule].values()]
        given = {"weighting": rule(*values), "max_positive_similarity": None, "backend": "cuda"}
        given["mining"] = MultiSimilarityMining()
        rows = pair_loss(x, y, refs, z, reduction="none", **given)
        found = torch.autograd.grad(rows.sum(), (refs, *values))
        assert all(part.isnan().all() for part in found)
        # An anchor that does not count may be NaN.
        mask = torch.arange(20) != 3
        loss = pair_loss(x, y, refs, z, anchor_mask=mask, **given)
        got = torch.autograd.grad(loss, values)
        loss = pair_loss(x[mask], y[mask], refs, z, **given)
        want = torch.autograd.grad(loss, values)
        torch.testing.assert_close([19 * g for g in got], [19 * w for w in want])
        # An incoming gradient that is not finite reaches them.
        rows = pair_loss(x[mask], y[mask], refs, z, reduction="none", **given)
        worth = torch.ones_like(rows).index_fill(0, torch.tensor(2), torch.nan)
        assert all(part.isnan() for part in torch.autograd.grad(rows, values, worth))


@pytest.mark.parametrize("shape", [(0, None), (1, None), (3, None), (5, 0), (0, 5)], ids=str)
def test_degenerate_batches(path, shape):
    n, m = shape
    x, y = batch(n)
    refs = () if m is None else batch(m, seed=1)
    given = (x, y, refs, *MULTI_SIMILARITY[:1], MULTI_SIMILARITY[1].values(), NoMining(), ("rows",))
    torch.testing.assert_close(gradients(*given), gradients(*given, backend="reference"))


@pytest.mark.parametrize("kind", ["one_launch", "by_tiles"])
def test_launches(monkeypatch, kind):
    """As a graph is captured: nothing else is asked of the runtime than to launch."""
    host = Host(monkeypatch, build.module(), kind)
    x, y = batch(130)
    r, z = batch(70, seed=1)
    for learn in LEARN:
        refs = (r, z) if "refs" in learn else ()
        given = x, y, refs, *MULTI_SIMILARITY[:1], MULTI_SIMILARITY[1].values(), NoMining(), learn
        found = len(host.launches_of(lambda given=given: gradients(*given)))
        if kind == "one_launch":
            assert found == 2  # of the statistics, and of all gradients
            continue
        prepare, terms = (2, 1) if refs else (1, 2)
        passes = max(1, len(learn))  # a list and weights each, products for those who learn
        adds_up = 2
        assert found == 2 * prepare + 6 + terms + 2 * passes + len(learn) + adds_up


def test_what_the_module_refuses(one_launch):
    side = Side(*batch(30), None)
    spec = PairSpec(rules.BinomialDeviance(), NoMining())
    call = cuda._call("gradient", side, None, spec)
    with pytest.raises(ValueError, match=r"write_weight_sums: expected .* read_options\(\) before"):
        call.expect_weight_sums()
    with pytest.raises(ValueError, match="read_options: expected up to 3 values, got 4"):
        call.native.read_options(256, 4)
    with pytest.raises(ValueError, match=r"option_values: expected shape \(3,\)"):
        cuda.learned_statistics(side, None, spec, torch.ones(2, dtype=torch.float64))
