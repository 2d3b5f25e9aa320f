"""The losses of CLIP and SigLIP, against dense cross-entropies and sigmoids."""

import every_backend
import pytest
import torch

import ms_kernels
from ms_kernels import clip_loss, siglip_loss

unit = torch.nn.functional.normalize


@pytest.fixture(params=every_backend.NAMES)
def backend(request, monkeypatch):
    return every_backend.served(monkeypatch, request.param)


def batch(n=70, d=12, dtype=torch.float64):
    generator = torch.Generator().manual_seed(n)
    image = torch.randn(n, d, generator=generator, dtype=torch.float64)
    text = image + torch.randn(n, d, generator=generator, dtype=torch.float64)
    return [t.to(dtype).requires_grad_() for t in (image, text)]


def dense_clip(image, text, scale):
    logits, own = scale * unit(image) @ unit(text).T, torch.arange(len(image))
    entropy = torch.nn.functional.cross_entropy
    return (entropy(logits, own) + entropy(logits.T, own)) / 2


def dense_siglip(image, text, scale, bias):
    z = scale * unit(image) @ unit(text).T + bias
    return -torch.nn.functional.logsigmoid((2 * torch.eye(len(z)).to(z) - 1) * z).sum() / len(z)


def same(got, want, leaves):
    torch.testing.assert_close(got, want, rtol=1e-11, atol=1e-13)
    for a, b in zip(*(torch.autograd.grad(loss, leaves) for loss in (got, want)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_clip(backend, scale):
    image, text = batch()
    learned = torch.tensor(scale, dtype=torch.float64, requires_grad=True)
    want = dense_clip(image, text, learned)
    same(clip_loss(image, text, scale, backend=backend), want, [image, text])
    want = dense_clip(image, text, learned)
    same(clip_loss(image, text, learned, backend=backend), want, [image, text, learned])


@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_siglip(backend, scale):
    image, text = batch()
    learned = [
        torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (scale, -0.7 * scale)
    ]
    want = dense_siglip(image, text, *learned)
    numbers = [v.item() for v in learned]
    same(siglip_loss(image, text, *numbers, backend=backend), want, [image, text])
    want = dense_siglip(image, text, *learned)
    leaves = [image, text, *learned]
    same(siglip_loss(image, text, *learned, backend=backend), want, leaves)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_labels_say_which_belong_together(backend):
    image, text = batch()
    labels = torch.arange(70) // 2
    got = clip_loss(image, text, 5.0, labels=labels, backend=backend)
    s = 5 * unit(image) @ unit(text).T
    want = []
    for similarity in (s, s.T):
        for i, row in enumerate(similarity):
            far = row[labels != labels[i]].logsumexp(0)
            want.append((torch.logaddexp(row[labels == labels[i]], far)).mean())
            want[-1] = want[-1] - row[labels == labels[i]].mean()
    same(got, torch.stack(want).mean(), [image, text])
    got = siglip_loss(image, text, 5.0, -1.0, labels=labels, backend=backend)
    s = 5 * unit(image) @ unit(text).T
    z = (2.0 * (labels[:, None] == labels) - 1) * (s - 1)
    same(got, -torch.nn.functional.logsigmoid(z).sum() / 70, [image, text])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
@pytest.mark.parametrize("learns", [True, False])
def test_dtypes(dtype, learns):
    image, text = batch(300, 40, dtype)
    scale = torch.tensor(20.0, requires_grad=True) if learns else 20.0
    for ours, dense, rest in (
        (clip_loss, dense_clip, ()),
        (siglip_loss, dense_siglip, (-10.0,)),
    ):
        leaves = [image, text, *([scale] if learns else [])]
        wide = [v.detach().double().requires_grad_() for v in leaves]
        got = ours(image, text, scale, *rest)
        want = dense(*wide[:2], wide[2] if learns else scale, *rest)
        eps = torch.finfo(dtype).eps
        assert got.dtype == dtype
        torch.testing.assert_close(got.double(), want, rtol=max(eps, 1e-6), atol=0)
        found = zip(torch.autograd.grad(got, leaves), torch.autograd.grad(want, wide), strict=True)
        for a, b in found:
            assert (a.double() - b).norm() <= max(2 * eps, 1e-5) * b.norm()


@pytest.mark.parametrize("backend", ["auto", "panels", "reference"])
def test_a_scale_of_half_is_not_rounded_again(backend):
    """1 / 14.25 in bfloat16 is that of another scale, by a third of a percent."""
    image, text = batch()
    for scale in (14.25, 100.0):
        learned = torch.tensor(scale, dtype=torch.bfloat16, requires_grad=True)
        want = dense_clip(image, text, learned.double())
        same(clip_loss(image, text, learned, backend=backend), want, [image, text])


@pytest.mark.parametrize("learns", [True, False])
def test_an_encoder_with_itself(backend, learns):
    """One tensor for both sides is two sides all the same: row i still belongs to row i."""
    image, _ = batch()
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True) if learns else 5.0
    leaves = [image, scale] if learns else [image]
    want = dense_clip(image, image, scale)
    same(clip_loss(image, image, scale, backend=backend), want, leaves)
    want = dense_siglip(image, image, scale, -3.0)
    same(siglip_loss(image, image, scale, -3.0, backend=backend), want, leaves)


def test_sets_of_labels():
    """Each row has a label of its own, so that they say what labels say."""
    image, text = batch(30, 6)
    labels = torch.arange(30) // 3
    sets = torch.nn.functional.one_hot(labels).bool()
    for loss in (clip_loss, siglip_loss):
        want = loss(image, text, 5.0, labels=labels)
        same(loss(image, text, 5.0, labels=sets), want, [image, text])


def test_gradcheck():
    image, text = batch(9, 4)
    t, b = (torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (3.0, -1.0))
    assert torch.autograd.gradcheck(clip_loss, (image, text, t))
    assert torch.autograd.gradcheck(siglip_loss, (image, text, t, b))


@pytest.mark.parametrize("learns", [True, False])
def test_in_a_compiled_graph(learns):
    image, text = batch()
    scale = torch.tensor(20.0, dtype=torch.float64, requires_grad=True) if learns else 20.0
    leaves = [image, text, *([scale] if learns else [])]

    def both(image, text, scale):
        return clip_loss(image, text, scale) + siglip_loss(image, text, scale, -3.0)

    same(torch.compile(both, fullgraph=True)(image, text, scale), both(image, text, scale), leaves)


def test_a_learned_bias_of_a_batch_with_itself():
    """Of one side too: the bias takes a second."""
    x, y = batch(40)[0], torch.arange(40) // 4
    learned = [torch.tensor(v, dtype=torch.float64, requires_grad=True) for v in (5.0, -1.0)]
    for ids in (None, torch.arange(40) // 2):
        losses = [
            ms_kernels.pair_loss(
                x, y, weighting=ms_kernels.SigLIP(*learned), ids=ids, backend=backend
            )
            for backend in ("cpu", "reference")
        ]
        same(*losses, [x, *learned])


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"text": torch.ones(3, 5)}, ValueError, r"text: expected shape \(4, 5\) as image"),
        ({"text": torch.ones(4, 5).double()}, TypeError, "text: expected dtype torch.float32"),
        ({"image": [1.0]}, TypeError, "image: expected a tensor, got list"),
        ({"image": torch.ones(4)}, ValueError, r"image: expected shape \(N, D\), got \(4,\)"),
        ({"scale": 0.0}, ValueError, "scale: expected a finite number above 0, got 0"),
        ({"scale": torch.tensor(-2.0)}, ValueError, "scale: expected a .* above 0, got -2"),
        ({"scale": torch.ones(1)}, TypeError, r"scale: .* shape \(\), got .* shape \(1,\)"),
        ({"backend": "gpu"}, ValueError, "backend: expected one of"),
        ({"labels": torch.ones(3, dtype=torch.int64)}, ValueError, r"labels: expected shape \(4,"),
        ({"labels": [0, 0, 1, 1]}, TypeError, "labels: expected"),
    ],
)
@pytest.mark.parametrize("loss", [clip_loss, siglip_loss])
def test_what_cannot_be(loss, given, error, message):
    with pytest.raises(error, match=message):
        loss(**{"image": torch.ones(4, 5), "text": torch.ones(4, 5), **given})
