"""Labels and candidates that were made in inference mode, as an evaluation loop leaves them."""

import pytest
import torch

import ms_kernels
from ms_kernels import HistogramLoss, NTXent, SigLIP, Triplet, pair_loss, streamed_loss


def made(n, m):
    g = torch.Generator().manual_seed(0)
    return torch.arange(n) % 4, torch.randn(m, 8, generator=g), torch.arange(m) % 4


LOSSES = {
    "multi_similarity": lambda *a, **k: ms_kernels.multi_similarity_loss(*a, **k),
    "NTXent": lambda *a, **k: pair_loss(*a, weighting=NTXent(), **k),
    "Triplet": lambda *a, **k: pair_loss(*a, weighting=Triplet(), **k),
}


def gradient(loss, *others):
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(1)).requires_grad_()
    loss(x, *others).sum().backward()
    return x.grad


def check(loss, refs):
    wanted = gradient(loss, *made(20, 30)[: 3 if refs else 1])
    with torch.inference_mode():
        others = made(20, 30)[: 3 if refs else 1]
    assert others[0].is_inference()
    assert torch.equal(gradient(loss, *others), wanted)


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
@pytest.mark.parametrize("backend", ["cpu", "panels", "reference"])
@pytest.mark.parametrize("name", LOSSES)
def test_losses(name, backend, normalize, reduction, refs):
    options = {"backend": backend, "normalize": normalize, "reduction": reduction}
    check(lambda *a: LOSSES[name](*a, **options), refs)


@pytest.mark.parametrize("normalize", [True, False], ids=["unit", "raw"])
def test_a_row_loss_that_learns(normalize):
    scale = torch.ones((), requires_grad=True)

    def own(similarity, positive, negative):
        return NTXent().row_loss(similarity * scale, positive, negative)

    check(lambda *a: streamed_loss(own, *a, normalize=normalize), True)


@pytest.mark.parametrize("backend", ["cpu", "panels", "reference"])
def test_embeddings_against_refs_that_learn(backend):
    y, r, z = made(20, 30)
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            x, ids = made(20, 20)[1], torch.arange(20)
        leaf = r.clone().requires_grad_()
        ids = {"ids": ids, "ref_ids": torch.arange(30)}
        loss = LOSSES["multi_similarity"](x, y, leaf, z, backend=backend, normalize=False, **ids)
        found.append(torch.autograd.grad(loss, leaf)[0])
    assert torch.equal(*found)


@pytest.mark.parametrize("rule", [NTXent, SigLIP])
@pytest.mark.parametrize("learns", ["rows", "option"])
def test_options_that_are_tensors(rule, learns):
    """The rows take them in, by a product of which autograd keeps both."""
    found = []
    for inference in (False, True):
        with torch.inference_mode(inference):
            y, x, _ = made(20, 20)
            option = torch.tensor(0.5)
        leaf = (x if learns == "rows" else option).clone().requires_grad_()
        x, option = (leaf, option) if learns == "rows" else (x, leaf)
        loss = pair_loss(x, y, weighting=rule(option), normalize=False)
        found.append(torch.autograd.grad(loss, leaf)[0])
    assert found[0].any() and torch.equal(*found)


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_streamed(reduction, refs):
    check(lambda *a: streamed_loss(NTXent().row_loss, *a, reduction=reduction), refs)


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
def test_histogram(refs):
    check(HistogramLoss(), refs)
