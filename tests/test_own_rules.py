"""Losses and mining rules of one's own: what they may do, and what is refused."""

import dataclasses

import pytest
import torch
from family import few, five_lines, gradient

import ms_kernels
from ms_kernels import pair_loss, streamed_loss
from ms_kernels.rules import mining as mine
from ms_kernels.rules import weighting as weigh


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


def test_a_count_without_gradients():
    """Nothing is asked for a gradient under no_grad, so a loss need not have one."""
    x, y = torch.randn(12, 4).requires_grad_(), torch.arange(12) // 3

    def close_positives(similarity, positive, negative):
        return (positive & (similarity < 0.5)).sum(1).to(similarity.dtype)

    for reduction in ("mean", "none"):
        with torch.no_grad():
            got = streamed_loss(close_positives, x, y, reduction=reduction)
        want = streamed_loss(close_positives, x.detach(), y, reduction=reduction)
        assert torch.equal(got, want) and not got.requires_grad
    with pytest.raises(ValueError, match="row_loss: expected a loss that autograd can follow"):
        streamed_loss(close_positives, x, y)
