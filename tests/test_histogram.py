"""The histogram loss: against loops over the paper's equations, in panels and dense."""

import math

import pytest
import torch
from family import MININGS, kept, name_of

import ms_kernels
from ms_kernels import Histogram, HistogramLoss, pair_loss, streamed_loss
from ms_kernels.rules import mining as mine
from ms_kernels.settings import options

RUNS = [("panels", 1), ("panels", 20_000), ("auto", 1 << 24), ("reference", 1)]


def batch(n=23, m=None, d=4, seed=5):
    generator = torch.Generator().manual_seed(seed)
    new = {"generator": generator, "dtype": torch.float64}
    y = torch.randint(6, (n,), generator=generator)
    x = torch.randn(6, d, **new)[y] + torch.randn(n, d, **new)
    if m is None:
        return x, y, None, None
    return x, y, torch.randn(m, d, **new), torch.randint(6, (m,), generator=generator)


def histogram(similarities, bins):
    """Equation 1 with its triangular weights, node by node."""
    step = 2 / bins
    nodes = [-1 + step * r for r in range(bins + 1)]
    inside = [min(1, max(-1, s)) for s in similarities]
    total = max(1, len(inside))
    return [sum(max(0, 1 - abs(s - t) / step) for s in inside) / total for t in nodes]


def loop(tensors, bins, mining=MININGS[0], own=None, other=None, below=math.inf, normalize=True):
    x, y, r, z = tensors
    unit = torch.nn.functional.normalize if normalize else lambda v: v
    if r is None:
        own = list(range(len(x))) if own is None else own
        r, z, other = x, y, own
    s = (unit(x) @ unit(r).T).tolist()
    every = [], []
    for i, row in enumerate(s):
        pairs = [j for j in range(len(row)) if own is None or own[i] != other[j]]
        pos = [row[j] for j in pairs if z[j] == y[i] and row[j] < below]
        neg = [row[j] for j in pairs if z[j] != y[i]]
        for into, part in zip(every, kept(mining, pos, neg), strict=True):
            into.extend(part)
    h_pos, h_neg = (histogram(part, bins) for part in every)
    total = sum(h_neg[r] * sum(h_pos[: r + 1]) for r in range(bins + 1))  # equation 4
    return torch.tensor(total, dtype=torch.float64)


@pytest.mark.parametrize("bins", [1, 10, 100])
@pytest.mark.parametrize("m", [None, 9], ids=["self", "refs"])
@pytest.mark.parametrize("mining", MININGS, ids=name_of)
def test_values_are_those_of_the_equations(mining, m, bins, monkeypatch):
    tensors = batch(m=m)
    want = loop(tensors, bins, mining)
    for backend, panel_bytes in RUNS:
        monkeypatch.setattr(options, "_panel_bytes", panel_bytes)
        loss = pair_loss(*tensors, weighting=Histogram(bins), mining=mining, backend=backend)
        assert loss.shape == () and loss.dtype == torch.float64
        torch.testing.assert_close(loss, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
@pytest.mark.parametrize("backend", ["panels", "reference"])
@pytest.mark.parametrize("m", [None, 12], ids=["self", "refs"])
def test_ids_cap_and_rows_that_are_not_normalised(m, backend, normalize):
    x, y, r, z = batch(m=m)
    own, other = torch.arange(len(x)) // 2, None if m is None else torch.arange(12)
    options = {"max_positive_similarity": 0.7, "normalize": normalize, "backend": backend}
    got = pair_loss(x, y, r, z, weighting=Histogram(20), ids=own, ref_ids=other, **options)
    others = None if m is None else other.tolist()
    want = loop((x, y, r, z), 20, own=own.tolist(), other=others, below=0.7, normalize=normalize)
    torch.testing.assert_close(got, want, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("backend", ["panels", "reference"])
@pytest.mark.parametrize("mining", MININGS, ids=name_of)
@pytest.mark.parametrize("m", [None, 7], ids=["self", "refs"])
def test_gradcheck(m, mining, backend, monkeypatch):
    monkeypatch.setattr(options, "_panel_bytes", 4 * 48 * 11)  # panels of 4 rows
    x, y, r, z = batch(n=9, m=m, d=3)
    tensors = [v.clone().requires_grad_() for v in (x, r) if v is not None]

    def loss(x, r=None):
        rules = {"weighting": Histogram(10), "mining": mining, "backend": backend}
        return pair_loss(x, y, r, z, **rules)

    assert torch.autograd.gradcheck(loss, tensors, eps=1e-7, atol=1e-5)


@pytest.mark.parametrize("wanted", ["x", "r", "xr"])
@pytest.mark.parametrize("m", [None, 50], ids=["self", "refs"])
@pytest.mark.parametrize("mining", MININGS, ids=name_of)
def test_streamed_gradients_are_the_dense_ones(mining, m, wanted, monkeypatch):
    if m is None and wanted != "x":
        pytest.skip("without refs")
    monkeypatch.setattr(options, "_panel_bytes", 16 * 8 * 50 * 7)
    x, y, r, z = batch(n=40, m=m)
    leaves = [v.requires_grad_() for k, v in (("x", x), ("r", r)) if k in wanted]
    rules = {"weighting": Histogram(), "mining": mining}
    got, want = (
        torch.autograd.grad(3 * pair_loss(x, y, r, z, **rules, backend=backend), leaves)
        for backend in ("panels", "reference")
    )
    torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-12)


def test_pair_weights_are_the_formula():
    """bins h_neg[r] / (2 |P|) and bins h_pos[r + 1] / (2 |N|), with the signs of the loss."""
    s = torch.tensor([[0.9, 0.3, 0.35, -0.2]], dtype=torch.float64, requires_grad=True)
    positive = torch.tensor([[True, True, False, False]])
    (got,) = torch.autograd.grad(Histogram(10).batch_loss(s, positive, ~positive), s)
    pos, neg = histogram([0.9, 0.3], 10), histogram([0.35, -0.2], 10)
    cells = [9, 6, 6, 4]  # of steps of 0.2 from -1; 0.3 and 0.35 share one
    want = [-5 * neg[cells[0]] / 2, -5 * neg[cells[1]] / 2]
    want += [5 * pos[cells[2] + 1] / 2, 5 * pos[cells[3] + 1] / 2]
    torch.testing.assert_close(got[0], torch.tensor(want, dtype=torch.float64))


@pytest.mark.parametrize("backend", ["panels", "reference"])
def test_similarities_beyond_the_ends_count_there_without_a_gradient(backend):
    x = torch.tensor([[2.0], [3.0], [-1.5], [0.4]], dtype=torch.float64, requires_grad=True)
    y = torch.tensor([0, 0, 1, 1])
    rules = {"weighting": Histogram(4), "normalize": False, "backend": backend}
    loss = pair_loss(x, y, **rules)
    torch.testing.assert_close(loss, loop((x.detach(), y, None, None), 4, normalize=False))
    (dx,) = torch.autograd.grad(loss, x)
    assert dx[0].abs() > 0 and dx[1] == 0  # with the last row 0.8, and 1.2


@pytest.mark.parametrize("labels", [[], [0], [0, 0, 0], [0, 1, 2], [0, 0, 1]], ids=str)
@pytest.mark.parametrize("backend", ["panels", "reference"])
def test_degenerate_batches(labels, backend):
    y = torch.tensor(labels, dtype=torch.int64)
    x = torch.randn(len(y), 3, dtype=torch.float64, requires_grad=True)
    loss = pair_loss(x, y, weighting=Histogram(), backend=backend)
    torch.testing.assert_close(loss, loop((x.detach(), y, None, None), 100))
    (dx,) = torch.autograd.grad(loss, x)
    assert dx.isfinite().all()
    if len(set(labels)) in (0, 1, len(labels)):
        assert loss == 0 and dx.eq(0).all()
    nobody = pair_loss(x, y, x[:0], y[:0], weighting=Histogram(), backend=backend)
    assert nobody == 0 and torch.autograd.grad(nobody, x)[0].eq(0).all()


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("backend", ["panels", "reference"])
def test_a_similarity_that_is_not_finite_makes_the_loss_nan(backend, bad):
    x, y, _, _ = batch()
    x[3, 0] = bad
    for mining in MININGS:
        assert pair_loss(x, y, weighting=Histogram(), mining=mining, backend=backend).isnan()


@pytest.mark.parametrize("backend", ["panels", "reference"])
def test_dtypes_and_autocast(backend):
    x, y, _, _ = batch(n=60)
    for dtype, close in ((torch.float32, 1e-5), (torch.bfloat16, 0.02), (torch.float16, 0.005)):
        leaf = x.to(dtype).requires_grad_()
        loss = pair_loss(leaf, y, weighting=Histogram(20), backend=backend)
        (dx,) = torch.autograd.grad(loss, leaf)
        assert loss.dtype == dx.dtype == dtype
        want = loop((leaf.detach().double(), y, None, None), 20)
        torch.testing.assert_close(loss.double(), want, rtol=close, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pair_loss(x.float(), y, weighting=Histogram(20), backend=backend)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), loop((x, y, None, None), 20), rtol=1e-5, atol=0)


def test_large_batches_keep_every_pair():
    """In float32: sums of millions of pairs would round away the last of them."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1500, 8, generator=generator)
    y = torch.arange(1500) // 50
    got = pair_loss(x, y, weighting=Histogram())
    want = pair_loss(x.double(), y, weighting=Histogram(), backend="reference")
    torch.testing.assert_close(got.double(), want, rtol=1e-6, atol=0)


def test_compiles_as_one_graph(monkeypatch):
    monkeypatch.setattr(options, "_panel_bytes", 16 * 8 * 23 * 10)
    x, y, _, _ = batch()
    want_x, got_x = x.clone().requires_grad_(), x.clone().requires_grad_()
    module = HistogramLoss(50, mining=mine.MultiSimilarityMining())
    want = module(want_x, y)
    got = torch.compile(module, fullgraph=True, backend="aot_eager")(got_x, y)
    torch.testing.assert_close(got, want)
    want.backward()
    got.backward()
    torch.testing.assert_close(got_x.grad, want_x.grad)


def test_second_derivatives_are_dense():
    x, y, _, _ = batch()
    x.requires_grad_()
    loss = pair_loss(x, y, weighting=Histogram())
    with pytest.raises(RuntimeError, match="Histogram: .* no second derivative .*'reference'"):
        torch.autograd.grad(loss, x, create_graph=True)
    loss = pair_loss(x, y, weighting=Histogram(), backend="reference")
    (dx,) = torch.autograd.grad(loss, x, create_graph=True)
    assert torch.autograd.grad((dx * dx).sum(), x)[0].isfinite().all()


def test_the_module_calls_the_function():
    x, y, r, z = batch(m=9)
    module = HistogramLoss(bins=20, mining=mine.HardestMining(), normalize=False)
    rules = {"weighting": Histogram(20), "mining": mine.HardestMining()}
    assert module(x, y, r, z) == pair_loss(x, y, r, z, **rules, normalize=False)
    assert repr(module).startswith("HistogramLoss(Histogram(bins=20)")


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda x, y: Histogram(0), ValueError, "Histogram.bins: .*from 1 to 65536, got 0"),
        (lambda x, y: Histogram(65537), ValueError, "bins: .*got 65537; .*use fewer"),
        (lambda x, y: HistogramLoss(10**12), ValueError, "bins: .*1 to 65536, got 1000000000000"),
        (lambda x, y: Histogram(9.5), TypeError, "Histogram.bins: .*whole number.*got 9.5"),
        (lambda x, y: HistogramLoss(True), TypeError, "Histogram.bins: .*got True"),
        (
            lambda x, y: pair_loss(x, y, weighting=Histogram(), reduction="none"),
            ValueError,
            "reduction: expected 'mean' of Histogram, .*batch.*got 'none'; use 'mean'",
        ),
        (lambda x, y: HistogramLoss(reduction="sum"), ValueError, "reduction: .*got 'sum'"),
        (
            lambda x, y: pair_loss(x, y, weighting=Histogram(), backend="cpu"),
            ValueError,
            "'cpu' expected a rule that its kernels know",
        ),
        (
            lambda x, y: streamed_loss(Histogram().row_loss, x, y),
            TypeError,
            "Histogram.row_loss: .*whole batch.*use pair_loss",
        ),
        (
            lambda x, y: ms_kernels.HistogramLoss()(x, y[1:]),
            ValueError,
            r"labels: expected shape \(23,\)",
        ),
    ],
)
def test_errors_name_got_and_wanted(call, error, message):
    x, y, _, _ = batch()
    with pytest.raises(error, match=message):
        call(x, y)
