"""The family where it is easily wrong: bad input, odd modes, incoming gradients, its memory."""

import dataclasses
import inspect
import math
import subprocess
import sys

import pytest
import rounding
import torch
from family import MININGS, WEIGHTINGS, few, five_lines, name_of

import ms_kernels
from ms_kernels import pair_loss, streamed_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

BACKENDS = ["reference", "panels", "cpu"]


def gradient(call, x):
    leaf = x.detach().requires_grad_()
    return torch.autograd.grad(call(leaf), leaf)[0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("backend", BACKENDS[1:])
@pytest.mark.parametrize("weighting", WEIGHTINGS, ids=name_of)
def test_a_gradient_that_is_not_finite_stays_with_its_anchor(weighting, backend, bad):
    """An anchor that costs nothing has no gradient, whatever is asked of it."""
    x = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    y = torch.tensor([0, 0, 1, 1, 2, 3])
    incoming = torch.ones(6, dtype=x.dtype)
    incoming[5] = bad  # only negatives
    rules = {"weighting": weighting, "reduction": "none", "backend": backend}
    rows = pair_loss(x, y, **rules)
    got = gradient(lambda x: (pair_loss(x, y, **rules) * incoming).sum(), x)
    assert got.isfinite().all() or rows[5] != 0


@pytest.mark.parametrize("backend", ["auto", "panels", "reference"])
def test_rows_whose_squares_overflow(backend):
    x, y = few(n=30)
    x = x.float()
    for weighting in (weigh.Triplet(), weigh.NTXent(), ms_kernels.Histogram(20)):
        want = pair_loss(x, y, weighting=weighting, backend=backend)
        got = pair_loss(x * 2.0**70, y, weighting=weighting, backend=backend)
        torch.testing.assert_close(got, want)
        small = gradient(lambda x, w=weighting: pair_loss(x, y, weighting=w, backend=backend), x)
        large = gradient(
            lambda x, w=weighting: pair_loss(x, y, weighting=w, backend=backend), x * 2.0**70
        )
        torch.testing.assert_close(large * 2.0**70, small, rtol=1e-4, atol=1e-6)


def test_backward_under_autocast():
    x, y = few(n=40, d=16)
    x = x.float()
    for weighting in (ms_kernels.Histogram(1000), weigh.NTXent(), weigh.Triplet()):
        want = gradient(lambda x, w=weighting: pair_loss(x, y, weighting=w), x)
        leaf = x.clone().requires_grad_()
        loss = pair_loss(leaf, y, weighting=weighting)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss.backward()
        torch.testing.assert_close(leaf.grad, want)


def test_labels_that_change_after_the_forward_pass():
    x, y = few(n=40)
    want = gradient(lambda x: streamed_loss(five_lines, x, y), x)
    leaf, changed = x.clone().requires_grad_(), y.clone()
    loss = streamed_loss(five_lines, leaf, changed)
    changed.zero_()
    loss.backward()
    torch.testing.assert_close(leaf.grad, want)
    loss = streamed_loss(five_lines, leaf, changed, reduction="none")
    changed += 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.sum().backward()


def test_a_row_loss_that_learns():
    x, y = few(n=40)
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)

    def own(similarity, positive, negative):
        return torch.where(negative, (scale * similarity).exp(), 0).sum(1)

    got = torch.autograd.grad(streamed_loss(own, x, y), scale)[0]
    assert got > 0
    leaf = x.clone().requires_grad_()
    both = torch.autograd.grad(streamed_loss(own, leaf, y), (scale, leaf))
    torch.testing.assert_close(both[0], got)
    fixed = gradient(
        lambda x: streamed_loss(lambda s, p, n: torch.where(n, (2 * s).exp(), 0).sum(1), x, y),
        x,
    )
    torch.testing.assert_close(both[1], fixed)


@pytest.mark.parametrize("reduction", ["mean", "none", "mean_valid"])
def test_your_own_loss_swept_is_the_built_in(reduction):
    x, y, r, z = few(n=40, m=30)
    found = []
    for run in (
        lambda *tensors: streamed_loss(five_lines, *tensors, reduction=reduction),
        lambda *tensors: pair_loss(
            *tensors, weighting=weigh.MultiSimilarity(), reduction=reduction
        ),
    ):
        leaves = [side.detach().requires_grad_() for side in (x, r)]
        loss = run(leaves[0], y, leaves[1], z)
        loss.sum().backward()
        found.append([loss.detach(), *(leaf.grad for leaf in leaves)])
    torch.testing.assert_close(*found)


@pytest.mark.parametrize(
    "row_loss",
    [
        lambda s, p, n: (s > 0).sum(1),
        lambda s, p, n: 1.0,
        lambda s, p, n: s.sum(1).to(torch.cfloat),
    ],
    ids=["integers", "no tensor", "complex"],
)
def test_what_is_no_loss(row_loss):
    with pytest.raises(ValueError, match="expected a floating-point loss for each row"):
        streamed_loss(row_loss, *few())


def test_masks_that_a_row_loss_edits():
    x, y = few(n=40)

    def edits(similarity, positive, negative):
        negative &= False
        return torch.where(positive, 1 - similarity, 0).sum(1)

    got = streamed_loss(edits, x, y, reduction="mean_valid")
    want = streamed_loss(lambda s, p, n: torch.where(p, 1 - s, 0).sum(1), x, y)
    torch.testing.assert_close(got, want)  # every anchor keeps a pair


@pytest.mark.parametrize("backend", ["auto", "panels", "reference"])
@pytest.mark.parametrize(
    ("options", "error"),
    [({"max_positive_similarity": math.nan}, ValueError), ({"normalize": "no"}, TypeError)],
)
def test_shared_options_are_checked_everywhere(options, error, backend):
    x, y = few()
    for weighting in (weigh.NTXent(), ms_kernels.Histogram()):
        with pytest.raises(error, match=next(iter(options))):
            pair_loss(x, y, weighting=weighting, backend=backend, **options)
    with pytest.raises(error, match=next(iter(options))):
        ms_kernels.NTXentLoss(backend=backend, **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: weigh.NTXent(10**400), ValueError, "NTXent.temperature"),
        (lambda: weigh.NTXent(1e-39), ValueError, "temperature: expected a number from 1e-30"),
        (lambda: weigh.BinomialDeviance(1e39), ValueError, "BinomialDeviance.alpha"),
        (lambda: mine.MultiSimilarityMining(10**400), ValueError, "MultiSimilarityMining.epsilon"),
        (
            lambda: pair_loss([[1.0]], torch.arange(1), weighting=weigh.NTXent()),
            TypeError,
            "embeddings: expected a tensor, got list",
        ),
        (
            lambda: pair_loss(*few(), weighting=weigh.Circle(0.9, 256.0), backend="cpu"),
            ValueError,
            r"'cpu' expected a rule that its kernels know .*NTXent, SupCon, .*got Circle\(.* with",
        ),
    ],
)
def test_bad_input_is_named(call, error, message):
    with pytest.raises(error, match=message):
        call()


def test_options_that_change_in_a_compiled_graph():
    x, y = few()
    run = torch.compile(
        lambda x, t: pair_loss(x, y, weighting=weigh.NTXent(t)), fullgraph=True, backend="aot_eager"
    )
    for temperature in (0.1, 0.2, 0.3):
        want = pair_loss(x, y, weighting=weigh.NTXent(temperature))
        torch.testing.assert_close(run(x, temperature), want)


def test_members_say_their_options():
    parameters = inspect.signature(ms_kernels.NTXentLoss).parameters
    assert list(parameters)[:2] == ["temperature", "mining"]
    assert parameters["temperature"].default == 0.07


def test_many_positives_of_an_anchor_are_as_exact_as_few():
    """Sums of similarities would cancel where classes are large and rows near each other."""
    generator = torch.Generator().manual_seed(0)
    s = 0.9 + 0.001 * torch.rand(4, 600, generator=generator)
    positive = torch.arange(600).expand(4, -1) < 300
    rule = weigh.Triplet(0.0)
    want = rule._positive_by_positive(s.double(), positive, ~positive, 300)
    got = rule._sorted(s, positive, ~positive)
    direct = rule._positive_by_positive(s, positive, ~positive, 300)
    # Differences under 0.001 are exact: what rounds are two sums of 300, of 300 times as much.
    deviation = rounding.ONE_ROUNDING * 2.0**-24 * (2 * rounding.sum_variance(300, math.inf)) ** 0.5
    allowed = rounding.DEVIATIONS * deviation * 300 * 300 * 0.001
    for found in (got, direct):
        assert (found - want).abs().max() <= allowed


MEASURE = """
import sys, torch, ms_kernels as m
from ms_kernels.rules import weighting as w
def now(what): return int(open('/proc/self/status').read().split(what)[1].split()[0]) / 1024
n = int(sys.argv[2])
x, y = torch.randn(n, 128), torch.arange(n) // 4
own = lambda s, p, n: w.NTXent().row_loss(s, p, n)
loss = {'own': lambda x, y: m.streamed_loss(own, x, y)}.get(sys.argv[1])
loss = loss or getattr(m, sys.argv[1] + "Loss")()
loss(x[:64].clone().requires_grad_(), y[:64]).backward()
x.requires_grad_()
before = now('VmRSS:')
loss(x, y).backward()
print(now('VmHWM:') - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read from /proc")
@pytest.mark.parametrize(
    ("name", "n"),
    [
        ("own", 4096),
        ("NTXent", 2048),
        ("Triplet", 4096),
        ("Histogram", 2048),
    ],
)
def test_memory_does_not_grow_with_the_pairs(name, n):
    """In MiB; 4096 x 4096 similarities would be 64, and several of them."""
    command = [sys.executable, "-c", MEASURE, name, str(n)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 64


@pytest.mark.parametrize("mining", MININGS, ids=name_of)
def test_weights_of_a_loss_that_ignores_similarity(mining):
    x, y = few()
    learned = torch.ones((), dtype=torch.float64, requires_grad=True)

    class Constant(weigh.Weighting):
        def row_loss(self, similarity, positive, negative):
            return learned * torch.ones_like(similarity[:, 0])

    found = ms_kernels.pair_weights(ms_kernels.PairLoss(Constant(), mining), x, y)
    assert not found.weight.any()


@dataclasses.dataclass(frozen=True)
class Broken(mine.Mining):
    result: object

    def keep(self, similarity, positive, negative):
        return self.result(positive, negative)


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (lambda p, n: p, "Broken.keep: expected two bool tensors .*, got Tensor"),
        (lambda p, n: (p.float(), n), r"Broken.keep: .*, got torch.float32"),
        (lambda p, n: (p[:, :3], n), r"Broken.keep: .*, got torch.bool"),
        (lambda p, n: (p, None), "Broken.keep: .*, got None"),
    ],
)
def test_a_mining_rule_of_ones_own_that_is_wrong(result, message):
    x, y = few(n=20)
    with pytest.raises(TypeError, match=message):
        pair_loss(x, y, weighting=weigh.NTXent(), mining=Broken(result))
    with pytest.raises(NotImplementedError, match="Mining: define keep"):
        pair_loss(x, y, weighting=weigh.NTXent(), mining=mine.Mining())


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_mining_rule_cannot_keep_other_than_it_was_given(backend):
    x, y = few(n=20)
    rules = {"weighting": weigh.NTXent(), "backend": backend}
    everything = Broken(lambda p, n: (~n, ~p))  # the anchor itself too
    torch.testing.assert_close(
        pair_loss(x, y, mining=everything, **rules), pair_loss(x, y, **rules)
    )


@pytest.mark.parametrize(
    "row_loss",
    [
        lambda s, p, n: s.detach().sum(1),
        lambda s, p, n: torch.tensor(s.tolist(), dtype=s.dtype).sum(1),
    ],
)
def test_a_row_loss_without_a_gradient_is_refused(row_loss):
    x, y = few(n=20)
    assert streamed_loss(row_loss, x, y).isfinite()  # nothing is asked of it
    with pytest.raises(ValueError, match="row_loss: expected a loss that autograd can follow"):
        streamed_loss(row_loss, x.clone().requires_grad_(), y)
    with pytest.raises(TypeError, match="row_loss: expected a function .*NTXent.*weighting="):
        streamed_loss(weigh.NTXent(), x, y)


def test_a_row_loss_must_not_write_into_the_similarities():
    x, y = few(n=20)

    def writes(similarity, positive, negative):
        return similarity.clamp_(min=0).sum(1)

    @dataclasses.dataclass(frozen=True)
    class Writes(weigh.Weighting):
        row_loss = staticmethod(writes)

    for wanted in (False, True):
        leaf = x.clone().requires_grad_(wanted)
        for run in (
            lambda leaf: streamed_loss(writes, leaf, y),
            lambda leaf: pair_loss(leaf, y, weighting=Writes(), backend="reference"),
            lambda leaf: ms_kernels.pair_weights(Writes(), leaf, y),
        ):
            with pytest.raises(ValueError, match="row_loss: .*written into; use .*clamp"):
                run(leaf)
    with torch.inference_mode():  # nothing counts there, and nothing is lost
        assert streamed_loss(writes, x * 1, y).isfinite()

    class Mines(mine.Mining):
        def keep(self, similarity, positive, negative):
            similarity -= 1
            return positive, negative

    with pytest.raises(ValueError, match="Mines.keep: .*written into"):
        ms_kernels.mined_pairs(x, y, mining=Mines())
    with pytest.raises(ValueError, match="Mines.keep: .*written into"):
        pair_loss(x.clone().requires_grad_(), y, weighting=weigh.NTXent(), mining=Mines())

    def fails(similarity, positive, negative):
        raise RuntimeError("of its own")

    with pytest.raises(RuntimeError, match="of its own"):
        streamed_loss(fails, x.clone().requires_grad_(), y)


def test_a_row_loss_may_return_zeros_where_there_is_nothing():
    x, y = few(n=20)
    y[0] = -1  # an anchor without positives
    one_by_one = ms_kernels.options.panel_bytes
    ms_kernels.options.panel_bytes = 1

    def own(similarity, positive, negative):
        if not positive.any():
            return similarity.new_zeros(len(similarity))
        return torch.where(positive, 1 - similarity, 0).sum(1)

    try:
        got = gradient(lambda x: streamed_loss(own, x, y), x)
    finally:
        ms_kernels.options.panel_bytes = one_by_one
    plain = lambda s, p, n: torch.where(p, 1 - s, 0).sum(1)  # noqa: E731
    torch.testing.assert_close(got, gradient(lambda x: streamed_loss(plain, x, y), x))


def test_modules_take_ids():
    x, y = few(n=20)
    sides = (x, y, torch.cat([x, x + 1]), torch.cat([y, y]))
    ids = {"ids": torch.arange(20), "ref_ids": torch.arange(40)}
    got = ms_kernels.NTXentLoss()(*sides, **ids)
    assert got == pair_loss(*sides, weighting=weigh.NTXent(), **ids)
    assert got != ms_kernels.NTXentLoss()(*sides)
    got = ms_kernels.MultiSimilarityLoss()(*sides, **ids)
    assert got == ms_kernels.multi_similarity_loss(*sides, **ids)
