"""The CUDA kernels, executed on the CPU, on rows and incoming gradients of extreme size."""

import math

import pytest
import rounding
import torch
from cases import DTYPES, SPECS, MultiSimilarityOptions, assert_within_budget, case_id, make_batch
from family import KERNELS, name_of
from host_gpu import build
from host_gpu.runtime import Runtime
from host_gpu.serve import serve

from ms_kernels import multi_similarity_loss, options, reference
from ms_kernels.backends import cuda
from ms_kernels.backends.interface import Side, Term
from ms_kernels.rules.mining import NoMining
from ms_kernels.rules.spec import PairSpec

pytestmark = pytest.mark.skipif(build.why_not() is not None, reason=str(build.why_not()))

ULP = {torch.float64: 2.0**-40, torch.float32: 2.0**-18, torch.bfloat16: 2.0**-7}
ULP[torch.float16] = 2.0**-9


@pytest.fixture(params=["one_launch", "small", "by_tiles"])
def backend(monkeypatch, request):
    return serve(monkeypatch, build.module(), request.param)


def gradients(function, x, r=None, dloss=None):
    """Of function(x, r), by each of them that is given; `dloss`: of each row loss."""
    leaves = [v.clone().requires_grad_() for v in (x, r) if v is not None]
    loss = function(*leaves)
    loss.backward(torch.ones_like(loss) if dloss is None else dloss.to(loss.dtype))
    return [leaf.grad for leaf in leaves]


@pytest.mark.parametrize("dtype", DTYPES, ids=case_id)
@pytest.mark.parametrize("with_refs", [False, True], ids=["self", "refs"])
def test_rows_of_one_number_under_the_floor_of_the_norm(backend, dtype, with_refs):
    """Normalised, a number is its sign, which nothing moves; one under 1e-12 has none."""
    small = [3e-13, -1e-13] if dtype != torch.float16 else [0.0, 0.0]
    x = torch.tensor([*small, 0.0, 2.0, -3.0, 0.5], dtype=dtype)[:, None]
    y = torch.tensor([0, 1, 0, 1, 1, 2])
    refs = (x.flip(0), y.flip(0) % 2) if with_refs else (None, None)
    candidates = Side(*refs, None) if with_refs else None
    spec = MultiSimilarityOptions(base=0.0, epsilon=None)
    loss, _, *got = cuda.loss_and_gradient(Side(x, y, None), candidates, spec.spec, True, True)
    assert loss.isfinite().all() and loss.any()
    for gradient in got[: 1 + with_refs]:
        assert torch.equal(gradient, torch.zeros_like(gradient))


def terms_of(use, x, y, r, z, dloss, spec):
    """The cuda backend's gradient of sum(dloss * row loss) by the rows, or by the candidates."""
    anchors, candidates = Side(x, y, None), None if use == "self" else Side(r, z, None)
    spec = spec if isinstance(spec, PairSpec) else spec.spec
    term = Term(cuda.row_statistics(anchors, candidates, spec), dloss)
    if use == "columns":
        return cuda.embedding_gradient(candidates, anchors, spec, None, term)
    return cuda.embedding_gradient(
        anchors, candidates, spec, term, term if candidates is None else None
    )


# Weights of float16 are lifted into their range; the others differ in the type of their products.
INCOMING = [(torch.float16, value) for value in (1.0, 1e12, 1e30, math.inf, math.nan)]
INCOMING += [(d, value) for d in DTYPES if d != torch.float16 for value in (1e30, math.nan)]


@pytest.mark.parametrize(("dtype", "value"), INCOMING, ids=case_id)
@pytest.mark.parametrize("use", ["self", "rows", "columns"])
def test_the_incoming_gradient_of_one_row_takes_nothing_from_others(backend, dtype, use, value):
    spec = SPECS["unmined"]
    x, y, r, z = make_batch(70, None if use == "self" else 90, 16, spec, dtype)
    dloss = torch.rand(70, dtype=torch.float64) + 0.1
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    dloss[3] = value
    got = terms_of(use, x, y, r, z, dloss.to(compute), spec).double()

    def dense(dtype, dloss):
        def loss(x, r=None):
            kept = {"epsilon": None, "reduction": "none"}
            return reference.multi_similarity_loss(x, y, r, z if r is not None else None, **kept)

        sides = [None if v is None else v.to(dtype) for v in (x, r)]
        return gradients(loss, *sides, dloss)[-1 if use == "columns" else 0].double()

    exact = dense(torch.float64, dloss)
    found = got.isfinite().all(1) if not math.isfinite(value) else torch.ones(len(got)).bool()
    if use == "rows":
        assert found.sum() >= len(got) - 1
    assert not got[~found].isfinite().any()  # a weight that is not finite
    floors = rounding.of_spec((x, y, *(() if use == "self" else (r, z))), spec, "cuda")
    floor = floors.gradients("none", dloss)[-1 if use == "columns" else 0]
    size = exact[found].abs().amax(1, keepdim=True)  # every row by its own
    got, exact, floor = (v[found] / size for v in (got, exact, floor))
    assert_within_budget(got, None, exact, floor)


def test_what_mining_keeps_apart_does_not_share_its_range(backend):
    """Two groups of classes; the gradient of one row of the first is large."""
    x = torch.zeros(8, 4).half()
    x[:4, 0] = x[4:, 2] = 1
    x[:4, 1] = x[4:, 3] = torch.tensor([0.0, 0.3, 0.6, 0.9])
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
    dloss = torch.ones(8)
    dloss[0] = 1e12
    got = terms_of("self", x, y, None, None, dloss, PairSpec())
    want = gradients(
        lambda x: reference.multi_similarity_loss(x, y, reduction="none"), x.double(), None, dloss
    )[0]
    for group in (slice(4), slice(4, 8)):
        error = (got[group].double() - want[group]).abs().max()
        assert error <= 2.0**-9 * want[group].abs().max()


def step(x, y, **chosen):
    return gradients(lambda x: multi_similarity_loss(x, y, reduction="sum", **chosen), x)[0]


def test_losses_so_small_that_float16_has_no_such_weights(backend):
    """The incoming gradient that a loss scaler gives brings the result back into its range."""
    for base in (0.55, 0.6):
        apart = torch.eye(96)[:, :96] * 1e-4
        corner = torch.zeros(3, 2)
        corner[1, 0] = corner[2, 1] = 2.0**-6  # of short rows gradients are great
        for x in (apart, corner):
            x, y = x.half(), torch.arange(len(x))
            kept = {"epsilon": None, "base": base}

            def scaled(x, backend, y=y, kept=kept):
                loss = multi_similarity_loss(x, y, reduction="sum", backend=backend, **kept)
                return loss * 65504

            (got,) = gradients(lambda x: scaled(x, backend), x)
            (want,) = gradients(lambda x: scaled(x, "reference"), x.double())
            got = got.double()
            assert want.abs().max() > 2.0**-24
            limit = 2.0**-9 * float(want.abs().max()) + 2.0**-25
            assert (got - want).abs().max() <= limit


# Similarities of float16 rows are float32 numbers: they cannot overflow.
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=case_id)
@pytest.mark.parametrize("place", [1, 16, 31, 63])
def test_a_row_that_overflows_hides_no_other_of_its_tile(backend, dtype, place):
    """Row 0 has its negatives in the tile of columns that no other row weighs."""
    x = torch.zeros(64, 3, dtype=torch.float64)
    x[0, 0], x[1:, 1] = 1, 1
    r = torch.zeros(128, 3, dtype=torch.float64)
    r[1:64, 1], r[64:, 0] = 2, 0.5 + torch.arange(64) / 512
    huge = math.sqrt(torch.finfo(dtype).max) * 2
    x[place] = r[0] = torch.tensor([0, 0, huge], dtype=x.dtype)  # overflows with its only positive
    y, z = torch.arange(64), torch.arange(100, 228)
    z[0] = y[place]
    x, r = x.to(dtype), r.to(dtype)
    chosen = {"normalize": False, "epsilon": None, "reduction": "sum"}
    got = gradients(lambda x: multi_similarity_loss(x, y, r, z, backend=backend, **chosen), x)[0]
    others = torch.arange(64) != place
    want = gradients(
        lambda x: reference.multi_similarity_loss(x, y[others], r.double(), z, **chosen),
        x[others].double(),
    )[0]
    assert got[place].isnan().all() and want[0, 0] > 0.1
    torch.testing.assert_close(got[others].double(), want, rtol=2 * ULP[dtype], atol=1e-9)


@pytest.mark.parametrize("value", [1.0, 1e30, math.nan])
@pytest.mark.parametrize("use", ["self", "refs"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=case_id)
def test_the_ms_loss_takes_an_incoming_gradient_as_it_goes(backend, dtype, use, value):
    """In as many launches as without one, to the bits of finished statistics with it; a small batch
    has sums of its own."""
    spec = SPECS["unmined"]
    x, y, r, z = make_batch(140, None if use == "self" else 90, 16, spec, dtype)
    sides = Side(x, y, None), None if use == "self" else Side(r, z, None)
    dloss = torch.linspace(-1, 2, 140, dtype=torch.float64)
    dloss[3] = value
    runtime = Runtime(build.module())
    counts, found = [], []
    for incoming in (None, dloss):
        with runtime.recorded() as calls:
            found = cuda.loss_and_gradient(*sides, spec.spec, True, use == "refs", incoming)
        counts.append(sum(call.launches for call in calls))
    assert counts[0] == counts[1]
    incoming = dloss.to(found[0].dtype)
    wanted = ["self"] if use == "self" else ["rows", "columns"]
    for side, got in zip(wanted, found[2:], strict=False):
        want = terms_of(side, x, y, r, z, incoming, spec)
        if cuda.SMALL < 0:
            torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)
            continue
        assert torch.equal(got.isnan(), want.isnan())
        size = want.abs().amax(1, keepdim=True)
        assert ((got - want).abs() <= 4 * ULP[dtype] * size)[~want.isnan()].all()


@pytest.mark.parametrize("weighting", KERNELS, ids=name_of)
def test_a_row_that_is_not_finite_keeps_nothing(backend, weighting):
    """So that mean_valid divides by as many rows as with any other backend."""
    x, y, r, z = make_batch(40, 70, 8, SPECS["default"], torch.float64)
    x[:, 0] = r[:, 0] = 0
    x[33, 0] = r[0, 0] = 1e200  # overflows with one candidate, not with others
    sides = Side(x, y, None), Side(r, z, None)
    spec = PairSpec(weighting, NoMining(), normalize=False)
    stats = cuda.row_statistics(*sides, spec)
    kept = cuda.loss_and_gradient(*sides, spec, False, False)[1]
    others = torch.arange(40) != 33
    for found in (stats.pos_kept + stats.neg_kept, kept):
        assert found[33] == 0 and found[others].all()


def test_float64_by_tiles_is_exact(monkeypatch):
    """Without mining distant classes weigh little, but not little enough for float64."""
    backend = serve(monkeypatch, build.module(), "by_tiles")
    y = torch.arange(320) // 64
    x = torch.eye(16, dtype=torch.float64)[y] + 0.02 * torch.randn(320, 16, dtype=torch.float64)
    x[y == 1] = x[y == 0] + 0.05 * x[y == 1]
    assert options.skip_below > 0
    got, want = (step(x, y, epsilon=None, backend=name) for name in (backend, "reference"))
    torch.testing.assert_close(got, want, rtol=0, atol=1e-13 * float(want.abs().max()))


def test_float32_sums_over_a_great_depth(backend):
    """Products of one sign: every addition to a sum rounds it."""
    x = torch.randn(33, 8448, dtype=torch.float64).relu().float()
    y = torch.arange(33) % 6
    spec = MultiSimilarityOptions(epsilon=None)
    got = cuda.row_statistics(Side(x, y, None), None, spec.spec)
    exact = reference.row_statistics(x.double(), y, epsilon=None)
    for k, floor in enumerate(rounding.of_spec((x, y), spec).statistics(exact)):
        assert_within_budget(got[k], None, exact[k], floor)
