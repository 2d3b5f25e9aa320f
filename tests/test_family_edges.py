"""The family where it is easily wrong: bad input, odd modes, incoming gradients, its memory."""

import inspect
import math
import subprocess
import sys

import pytest
import rounding
import torch
from family import MININGS, WEIGHTINGS, few, five_lines, gradient, name_of

import ms_kernels
from ms_kernels import pair_loss, streamed_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh

BACKENDS = ["reference", "panels", "cpu"]


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
            r"'cpu' expected a rule that its kernels know .*NTXent, SigLIP, .*got Circle\(.* with",
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
    want, number = rule._positive_by_positive(s.double(), positive, ~positive, 300)
    got = rule._sorted(s, positive, ~positive)
    direct = rule._positive_by_positive(s, positive, ~positive, 300)
    # Differences under 0.001 are exact: what rounds are two sums of 300, of 300 times as much.
    deviation = rounding.ONE_ROUNDING * 2.0**-24 * (2 * rounding.sum_variance(300, math.inf)) ** 0.5
    allowed = rounding.DEVIATIONS * deviation * 300 * 300 * 0.001
    for found, violated in (got, direct):
        assert torch.equal(violated, number)
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


def test_modules_take_ids():
    x, y = few(n=20)
    sides = (x, y, torch.cat([x, x + 1]), torch.cat([y, y]))
    ids = {"ids": torch.arange(20), "ref_ids": torch.arange(40)}
    got = ms_kernels.NTXentLoss()(*sides, **ids)
    assert got == pair_loss(*sides, weighting=weigh.NTXent(), **ids)
    assert got != ms_kernels.NTXentLoss()(*sides)
    got = ms_kernels.MultiSimilarityLoss()(*sides, **ids)
    assert got == ms_kernels.multi_similarity_loss(*sides, **ids)
