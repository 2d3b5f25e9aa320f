"""The registered ops: schema, fakes, torch.compile, and no work beyond what is asked."""

import every_backend
import pytest
import torch
from cases import SPECS
from op_checks import PACKED, R, X, Y, Z, check_graph, check_ops

import ms_kernels
import ms_kernels.distributed  # registers an op
from ms_kernels import BinomialDeviance, multi_similarity_loss, pair_loss
from ms_kernels.backends import cuda, cuda_call, dispatch
from ms_kernels.backends.interface import Side
from ms_kernels.engine import ops, reduced
from ms_kernels.rules.spec import PairSpec, unpack
from ms_kernels.rules.weighting import Contrastive, MultiSimilarity


@pytest.fixture(params=["cpu", "cuda-one_launch"])
def compiled(request, monkeypatch):
    return every_backend.served(monkeypatch, request.param)


def test_no_argument_has_a_default():
    """A compiled graph on disk names those left out, and outlives the version that knew them."""
    schemas = [s for s in torch._C._jit_get_all_schemas() if s.name.startswith("ms_kernels::")]
    assert len(schemas) == 9
    for schema in schemas:
        assert not [a.name for a in schema.arguments if a.has_default_value()], schema


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("with_ids", [False, True], ids=["no_ids", "ids"])
def test_opcheck(backend, refs, with_ids):
    check_ops(backend, refs, with_ids)


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize(
    ("reduction", "dtype"),
    [
        *[(name, torch.float32) for name in ("mean", "sum", "none", "mean_valid")],
        ("none", torch.bfloat16),
    ],
    ids=str,
)
def test_compile_without_graph_break(backend, reduction, refs, dtype):
    check_graph(backend, reduction, refs, dtype)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_fakes_know_the_compute_dtype(backend, dtype):
    x = X.to(dtype)
    real = ops.loss_and_gradient(x, Y, None, None, None, None, True, False, PACKED, backend, None)
    with torch._subclasses.FakeTensorMode() as mode:
        fake = ops.loss_and_gradient(
            mode.from_tensor(x),
            mode.from_tensor(Y),
            *[None] * 4,
            True,
            False,
            PACKED,
            backend,
            None,
        )
    for r, f in zip(real, fake, strict=True):
        assert (r.dtype, r.shape) == (f.dtype, f.shape)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("schedule", [True, None], ids=["dynamic", "scheduled"])
def test_compile_with_options_that_change(schedule, reduction):
    """Options become symbols: at once if dynamic, else at their second value."""
    torch._dynamo.reset()

    def step(x, alpha):
        return multi_similarity_loss(x, Y, alpha=alpha, reduction=reduction).sum()

    compiled = torch.compile(step, fullgraph=True, dynamic=schedule, backend="aot_eager")
    for alpha in (2.0, 2.5, 3.0):
        x, leaf = X.clone().requires_grad_(), X.clone().requires_grad_()
        got, want = compiled(x, alpha), step(leaf, alpha)
        assert torch.equal(got, want)
        got.backward()
        want.backward()
        assert torch.equal(x.grad, leaf.grad)


def test_compile_with_inductor_and_the_module():
    torch._dynamo.reset()
    loss = ms_kernels.MultiSimilarityLoss()
    net = torch.nn.Linear(48, 16)
    step = torch.compile(lambda x: loss(net(x), Y), fullgraph=True)
    got = step(X)
    got.backward()
    gradient = net.weight.grad.clone()
    net.weight.grad = None
    want = loss(net(X), Y)
    want.backward()
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(gradient, net.weight.grad, rtol=1e-4, atol=1e-6)


def test_compiled_second_derivative_is_refused(backend):
    torch._dynamo.reset()
    step = torch.compile(
        lambda x: multi_similarity_loss(x, Y, backend=backend), fullgraph=True, backend="aot_eager"
    )
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError):
        dx = torch.autograd.grad(step(x), x, create_graph=True)[0]
        torch.autograd.grad(dx.sum(), x)


def calls(monkeypatch, run):
    seen = []
    for name in ("row_statistics", "embedding_gradient", "loss_and_gradient", "reduce_pairs"):
        room = reduced if name == "reduce_pairs" else ops
        real = getattr(room, name)

        def count(*args, name=name, real=real):
            seen.append((name, *args[3:5]) if name == "reduce_pairs" else name)
            return real(*args)

        monkeypatch.setattr(room, name, count)
    run()
    return seen


def test_no_gradient_is_computed_that_nobody_wants(monkeypatch):
    x = X.clone().requires_grad_()

    def run():
        multi_similarity_loss(X, Y)
        with torch.no_grad():
            multi_similarity_loss(x, Y)

    assert calls(monkeypatch, run) == [("reduce_pairs", False, False)] * 2


@pytest.mark.parametrize(
    ("reduction", "want"),
    [
        ("mean", [("reduce_pairs", True, False)]),
        ("none", ["row_statistics", "embedding_gradient"]),
    ],
)
def test_a_training_step_is_one_call_or_two(monkeypatch, reduction, want):
    def run():
        x = X.clone().requires_grad_()
        multi_similarity_loss(x, Y, reduction=reduction).sum().backward()

    assert calls(monkeypatch, run) == want


def test_spec_survives_packing():
    for spec in SPECS.values():
        assert unpack(spec.spec.pack()) == spec.spec


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ((X, Y.int(), None, None, None, None), TypeError, "rows: expected labels of torch.int64"),
        ((X, Y[:3], None, None, None, None), ValueError, r"rows, labels: expected shape \(48,\)"),
        ((X, Y, Y[:3], None, None, None), ValueError, r"rows, ids: expected shape \(48,\)"),
        ((X, Y, Y.int(), None, None, None), TypeError, "rows: expected ids of torch.int64"),
        ((X[0], Y, None, None, None, None), ValueError, r"rows: expected embeddings \(N, D\)"),
        ((X, Y, None, R[:, :9], Z, None), ValueError, r"columns: expected shape \(M, 48\)"),
        ((X, Y, None, R.double(), Z, None), TypeError, "columns: expected dtype torch.float32"),
        ((X, Y, None, R, Z[:9], None), ValueError, r"columns, labels: expected shape \(97,\)"),
        ((X, Y, Y, R, Z, None), ValueError, "ids: expected them on both sides"),
        ((X, Y, None, R, Z, Z), ValueError, "ids: expected them on both sides"),
    ],
)
def test_an_op_reads_only_what_is_there(compiled, given, error, message):
    with pytest.raises(error, match=message):
        ops.row_statistics(*given, PACKED, compiled, None)
    with pytest.raises(error, match=message):
        ops.loss_and_gradient(*given, True, False, PACKED, compiled, None)


def test_an_incoming_gradient_is_as_long_as_its_side(compiled):
    for weighting in (MultiSimilarity(), Contrastive()):
        packed = PairSpec(weighting).pack()
        with pytest.raises(ValueError, match=r"dloss: expected shape \(48,\) on cpu, got \(47,\)"):
            ops.loss_and_gradient(X, Y, *[None] * 4, True, False, packed, compiled, torch.ones(47))


def test_a_term_is_as_long_as_its_side(compiled):
    def refused(terms, error, message):
        for given in ((terms, []), ([], terms)):
            with pytest.raises(error, match=f"term, {message}"):
                ops.embedding_gradient(X, Y, *[None] * 4, *given, PACKED, compiled)

    numbers, counts = torch.ones(48), torch.ones(48, dtype=torch.int64)
    short = [torch.ones(47) for _ in range(8)]
    refused(short, ValueError, r"hardest_positive: expected shape \(48,\).*got \(47,\)")
    refused([numbers] * 8, TypeError, "pos_kept: expected torch.int64, got torch.float32")
    terms = [*[numbers] * 4, *[counts] * 3, numbers]
    refused(terms, TypeError, "pos_moment: expected floating-point numbers, got torch.int64")


def test_the_kernels_of_a_gpu_read_its_memory_alone(monkeypatch):
    """Whatever led there: an address of the CPU means nothing to them."""
    monkeypatch.setattr(cuda_call, "module", pytest.fail)
    with pytest.raises(ValueError, match=r"rows: expected embeddings \(N, D\) on cuda, .* on cpu"):
        cuda.row_statistics(Side(X, Y, None), None, PairSpec())


def test_statistics_of_other_lengths_make_no_row_losses():
    pytest.importorskip("ms_kernels._cpu")
    long, short = torch.zeros(48), torch.zeros(47)
    counts = [torch.zeros(48, dtype=torch.int64)] * 2
    for stats, error in (
        ([long, long, long, short, *counts, long], r"hardest_positive: expected shape \(47,\)"),
        ([long, long, long.double(), long, *counts, long], r"pos_sum: expected torch.float32"),
        ([long, long, long[None], long, *counts, long], r"pos_sum: expected shape"),
        ([long] * 7, r"pos_kept: expected torch.int64"),
    ):
        with pytest.raises(ValueError, match=error):
            ops.row_loss_of(stats, X, None, PACKED, "cpu", None)


def test_one_backend_serves_forward_and_backward(monkeypatch):
    """Another would take other bits for similarities, and mine other pairs."""
    asked = []
    real = dispatch.resolve
    monkeypatch.setattr(
        dispatch, "resolve", lambda *args, **more: asked.append(args) or real(*args, **more)
    )
    x, r = torch.randn(6, 3, requires_grad=True), torch.randn(20, 3, requires_grad=True)
    y, z = torch.arange(6) % 2, torch.arange(20) % 2
    multi_similarity_loss(x, y, r, z, reduction="none").sum().backward()
    assert set(asked) == {("auto", "cpu", 20, SPECS["default"].spec, torch.float32)}


@pytest.mark.parametrize(
    ("weighting", "name"),
    [(None, "embedding_gradient"), (BinomialDeviance(), "embedding_gradient")],
)
def test_a_backward_pass_sees_the_precision_of_its_forward_pass(monkeypatch, weighting, name):
    seen = []
    real = getattr(ops, name)

    def watch(*args):
        seen.append(torch.get_float32_matmul_precision())
        return real(*args)

    monkeypatch.setattr(ops, name, watch)
    before = torch.get_float32_matmul_precision()
    x = X.clone().requires_grad_()
    torch.set_float32_matmul_precision("high")
    try:
        if weighting is None:
            loss = multi_similarity_loss(x, Y, reduction="none")
        else:
            loss = pair_loss(x, Y, weighting=weighting, reduction="none")
        torch.set_float32_matmul_precision("medium")
        loss.sum().backward()
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert set(seen) == {"high"}
