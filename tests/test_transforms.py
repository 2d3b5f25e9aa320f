"""Derivatives that are not there are refused in our words, in eager mode and in compiled graphs."""

import warnings
from dataclasses import dataclass

import pytest
import torch

import ms_kernels
from ms_kernels import Histogram, NTXent, Triplet, multi_similarity_loss, pair_loss, streamed_loss
from ms_kernels.engine import ops

X, Y = torch.randn(12, 4, generator=torch.Generator().manual_seed(0)), torch.arange(12) // 3
PACKED = ms_kernels.PairSpec().pack()


def squares(similarity, positive, negative):
    return torch.where(negative, similarity**2, 0).sum(1)


@dataclass(frozen=True)
class Own(ms_kernels.Weighting):
    def row_loss(self, similarity, positive, negative):
        return squares(similarity, positive, negative)


def family(rule, **options):
    return lambda x: pair_loss(x, Y, weighting=rule, **options).sum()


LOSSES = {
    **{
        f"ms-{reduction}": lambda x, r=reduction: multi_similarity_loss(x, Y, reduction=r).sum()
        for reduction in ("mean", "sum", "none", "mean_valid")
    },
    "ms-panels": lambda x: multi_similarity_loss(x, Y, backend="panels"),
    "ms-refs": lambda x: multi_similarity_loss(X, Y, x, Y),
    "ntxent-mean": family(NTXent()),
    "ntxent-none": family(NTXent(), reduction="none"),
    "triplet-panels": family(Triplet(), backend="panels"),
    "own": family(Own()),
    "histogram": family(Histogram(20)),
    "streamed": lambda x: streamed_loss(squares, x, Y),
}


def dual(loss, x):
    with torch.autograd.forward_ad.dual_level():
        number = torch.autograd.forward_ad.make_dual(x, torch.ones_like(x))
        return torch.autograd.forward_ad.unpack_dual(loss(number)).tangent


TRANSFORMS = {
    "grad": lambda f, x: torch.func.grad(f)(x),
    "vjp": lambda f, x: torch.func.vjp(f, x)[1](torch.ones(()))[0],
    "jacrev": lambda f, x: torch.func.jacrev(f)(x),
    "jvp": lambda f, x: torch.func.jvp(f, (x,), (torch.ones_like(x),))[1],
    "dual": dual,
    "vmap": lambda f, x: torch.func.vmap(f)(x[None]),
    "vmap of grad": lambda f, x: torch.func.vmap(torch.func.grad(f))(x[None]),
}
# A compiler may tell it in quotes of its own.
REFUSAL = r"(takes no part|no forward-mode).*backend=\\*'reference"


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("name", LOSSES)
def test_transforms_are_refused(name, transform):
    with pytest.raises(RuntimeError, match=REFUSAL):
        TRANSFORMS[transform](LOSSES[name], X)


# Every loss in one graph, and every transform: a refusal comes while the graph is traced, so that
# the compiler makes no difference but to what is done before.
IN_GRAPHS = [
    *[("ms-mean", transform, "eager") for transform in TRANSFORMS],
    *[("ms-mean", transform, "aot_eager") for transform in ("grad", "jvp", "vmap")],
    *[(name, "grad", "eager") for name in LOSSES if name != "ms-mean"],
    *[(name, "vmap", "eager") for name in ("ntxent-none", "histogram", "streamed")],
    *[(name, "jvp", "eager") for name in ("ms-none", "histogram", "streamed")],
    ("ms-none", "grad", "inductor"),
]


@pytest.mark.parametrize(("name", "transform", "compiler"), IN_GRAPHS)
def test_transforms_in_a_graph_are_refused(name, transform, compiler):
    torch._dynamo.reset()
    run = torch.compile(
        lambda x: TRANSFORMS[transform](LOSSES[name], x), fullgraph=True, backend=compiler
    )
    with pytest.raises(RuntimeError, match=f"(?s){REFUSAL}"):
        run(X)
    # The refusal leaves nothing behind.
    assert torch._C._functorch.peek_interpreter_stack() is None
    assert torch.func.jvp(torch.sum, (X,), (X,))[1] == X.sum()


def test_a_graph_that_may_break_refuses_too():
    torch._dynamo.reset()
    run = torch.compile(torch.func.grad(LOSSES["ms-mean"]), backend="eager")
    with pytest.raises(RuntimeError, match=f"(?s){REFUSAL}"):
        run(X)


def test_a_gradient_of_vmap_in_a_graph_is_not_lost():
    torch._dynamo.reset()
    x = X.clone().requires_grad_()
    run = torch.compile(lambda x: torch.func.vmap(LOSSES["ms-mean"])(x[None]), backend="eager")
    # The compiler of torch 2.14 looks at every attribute of what it finds.
    warnings.filterwarnings("ignore", "The .grad attribute")
    with pytest.raises(RuntimeError, match=f"(?s){REFUSAL}"):
        run(x).sum().backward()


@pytest.mark.parametrize("name", ["ms-mean", "ms-none", "ms-refs", "ntxent-none", "histogram"])
def test_a_second_derivative_of_a_graph_is_refused(name):
    """That of what is traced as plain PyTorch is right: see below."""
    torch._dynamo.reset()
    run = torch.compile(LOSSES[name], fullgraph=True, backend="eager")
    x = X.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative.*backend='reference'"):
        torch.autograd.grad(run(x), x, create_graph=True)
    assert torch.equal(
        torch.autograd.grad(run(x), x)[0], torch.autograd.grad(LOSSES[name](x), x)[0]
    )


def test_a_second_derivative_of_what_is_traced_is_right():
    torch._dynamo.reset()
    x, found = X.double().requires_grad_(), []
    compiled = torch.compile(LOSSES["streamed"], fullgraph=True, backend="eager")
    for loss in (compiled, family(Own(), backend="reference")):
        (dx,) = torch.autograd.grad(loss(x), x, create_graph=True)
        found.append(torch.autograd.grad((dx * x.detach().cos()).sum(), x)[0])
    torch.testing.assert_close(*found)


STATS = list(ops.row_statistics(X, Y, *[None] * 4, PACKED, "panels", None))
CALLS = {
    "row_statistics": lambda x: ops.row_statistics(x, Y, *[None] * 4, PACKED, "panels", None)[2],
    "loss_and_gradient": lambda x: ops.loss_and_gradient(
        *(x, Y, *[None] * 4, True, False, PACKED, "panels", None)
    )[0],
    "embedding_gradient": lambda x: ops.embedding_gradient(
        *(x, Y, *[None] * 4, [*STATS, torch.ones(12)], [], PACKED, "panels")
    ),
    "embedding_gradient of a term": lambda x: ops.embedding_gradient(
        *(X, Y, *[None] * 4, [*STATS, x[:, 0]], [], PACKED, "panels")
    ),
    "row_loss": lambda x: ops.row_loss_of([x[:, 0], *STATS[1:]], X, None, PACKED, "panels", None),
    "reduced_loss": lambda x: ops.reduced_loss(
        *(x, Y, *[None] * 4, "mean", False, True, False, PACKED, "panels")
    )[0],
}


@pytest.mark.parametrize("name", CALLS)
def test_an_op_by_itself_refuses_what_asks_for_a_derivative(name):
    def total(x):
        return CALLS[name](x).sum()

    refusal = pytest.raises(RuntimeError, match=rf"ms_kernels.{name.split()[0]}: .*no derivative")
    with refusal:
        total(X.clone().requires_grad_())
    for transform in ("grad", "jvp", "dual", "vmap of grad"):
        with refusal:
            TRANSFORMS[transform](total, X)
    with torch.no_grad():
        assert torch.equal(CALLS[name](X.clone().requires_grad_()), CALLS[name](X))


def test_statistics_are_constants():
    """In forward mode as under reverse mode."""
    want = ms_kernels.row_statistics(X, Y)
    assert not ms_kernels.row_statistics(X.clone().requires_grad_(), Y).pos_lse.requires_grad
    with torch.autograd.forward_ad.dual_level():
        number = torch.autograd.forward_ad.make_dual(X, torch.ones_like(X))
        for got, statistic in zip(ms_kernels.row_statistics(number, Y), want, strict=True):
            assert torch.equal(got, statistic)
            assert torch.autograd.forward_ad.unpack_dual(got).tangent is None


def test_a_tangent_of_what_a_row_loss_learns_is_kept():
    scale, tangent = torch.tensor(2.0), torch.tensor(3.0)

    def loss(scale):
        return streamed_loss(lambda s, p, n: torch.where(n, (scale * s).exp(), 0).sum(1), X, Y)

    got = dual(loss, scale) * tangent
    leaf = scale.clone().requires_grad_()
    torch.testing.assert_close(got, tangent * torch.autograd.grad(loss(leaf), leaf)[0])


BATCHES = torch.tensor([1.0, -2.0, 0.5])


@pytest.mark.parametrize("name", LOSSES)
def test_several_gradients_at_once_are_right(name):
    x = X.clone().requires_grad_()
    (dx,) = torch.autograd.grad(LOSSES[name](x), x)

    def run():
        loss = LOSSES[name](x)
        return torch.autograd.grad(loss, x, BATCHES, is_grads_batched=True)[0]

    torch.testing.assert_close(run(), BATCHES[:, None, None] * dx)


def test_several_gradients_of_single_losses_swept_are_refused():
    x = X.clone().requires_grad_()
    loss = streamed_loss(squares, x, Y, reduction="none").sum()
    with pytest.raises(RuntimeError, match="streamed_loss: .*one gradient at a time.*Weighting"):
        torch.autograd.grad(loss, x, BATCHES, is_grads_batched=True)


@pytest.mark.parametrize("with_gradient", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_tracing_is_refused(name, with_gradient):
    x = X.clone().requires_grad_(with_gradient)
    with pytest.raises(RuntimeError, match="no torch.jit.trace.*use torch.compile"):
        torch.jit.trace(LOSSES[name], x)


@pytest.mark.parametrize("transform", ["grad", "vjp", "jacrev", "jvp", "vmap"])
def test_weights_of_pairs_are_taken_outside_a_transform(transform):
    def total(x):
        return ms_kernels.pair_weights(NTXent(), x, Y).weight.sum()

    with pytest.raises(RuntimeError, match="pair_weights: .*call it before the transform"):
        TRANSFORMS[transform](total, X)
    with pytest.raises(RuntimeError, match=r"pair_weights: expected no torch.jit.trace"):
        torch.jit.trace(total, X)


def test_pairs_of_several_batches_are_mined_one_by_one():
    def pairs(x):
        return torch.stack(ms_kernels.mined_pairs(x, Y, epsilon=None)[:2])

    with pytest.raises(RuntimeError, match="mined_pairs: expected one batch, got several"):
        torch.func.vmap(pairs)(X[None])
    with pytest.raises(RuntimeError, match="mined_pairs: expected no torch.jit.trace"):
        torch.jit.trace(pairs, X)
    # A gradient goes by them: they are constants.
    of_pairs = torch.func.grad(lambda x: (x[pairs(x)[0]] * x[pairs(x)[1]]).sum())
    assert of_pairs(X).any()


PUBLIC = {
    "row_statistics": lambda x: ms_kernels.row_statistics(x, Y),
    "row_statistics-refs": lambda x: ms_kernels.row_statistics(x, Y, X, Y, backend="panels"),
    "row_statistics-reference": lambda x: ms_kernels.row_statistics(x, Y, backend="reference"),
    "mined_pairs": lambda x: ms_kernels.mined_pairs(x, Y),
}


@pytest.mark.parametrize("name", PUBLIC)
def test_functions_without_a_gradient_in_one_graph(name):
    torch._dynamo.reset()
    x = X.clone().requires_grad_()
    compiled = torch.compile(PUBLIC[name], fullgraph=True, backend="aot_eager")
    for got, want in zip(compiled(x), PUBLIC[name](x), strict=True):
        assert not got.requires_grad
        torch.testing.assert_close(got, want)


def test_weights_of_pairs_leave_a_graph():
    torch._dynamo.reset()

    def weights(x):
        return ms_kernels.pair_weights(NTXent(), x, Y).weight

    with pytest.raises(RuntimeError, match="pair_weights: .*fullgraph.*call it outside"):
        torch.compile(weights, fullgraph=True, backend="eager")(X)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # these tests put a function in the place of torch.empty
        got = torch.compile(weights, backend="eager")(X)
    torch.testing.assert_close(got, weights(X))
