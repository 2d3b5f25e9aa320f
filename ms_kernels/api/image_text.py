"""Losses of two encoders, as of images and texts: row i of one belongs to row i of the other."""

import torch
from torch import Tensor

from ms_kernels.api.functional import pair_loss
from ms_kernels.api.hints import names_the_way
from ms_kernels.api.learned import readable, take_in
from ms_kernels.api.road import loss_of
from ms_kernels.backends import dispatch
from ms_kernels.backends.interface import compute_dtype
from ms_kernels.checks import check_device, check_option, check_pairs
from ms_kernels.engine.autograd import fused_loss, in_public_dtype
from ms_kernels.engine.refusals import refuse_tracing
from ms_kernels.rules.mining import NO_MINING
from ms_kernels.rules.softmax import NTXent
from ms_kernels.rules.spec import PairOptions, PairSpec
from ms_kernels.rules.weighting import SigLIP

# exp of the paper's learned logarithm where its training begins.
SCALE = 1 / 0.07


@names_the_way
def clip_loss(
    image: Tensor,
    text: Tensor,
    scale: float | Tensor = SCALE,
    *,
    labels: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The contrastive loss of CLIP: cross-entropies of images among texts and of texts among
    images, (CE(scale S, i) + CE(scale S^T, i)) / 2 for the cosines S = image . text.

    Never N x N numbers at once; on the CPU both directions from one sweep of S.

    Args:
        image, text: (N, D) each, float16, bfloat16, float32 or float64 of one dtype and device;
            rows are divided by their L2 norm.
        scale: the inverse of the temperature, above 0: a number, or a tensor of shape () that
            learns, such as logit_scale.exp(). Default 1 / 0.07.
        labels: (N,) integers: images and texts of one label are positives of each other, of which
            the loss is a mean, as in `NTXent`. Or (N, K) bool, the labels that each row has, as in
            `pair_loss`. Default: each row has a label of its own.
        backend: as in `pair_loss`.

    Returns:
        The loss in the dtype of the embeddings, float32 under autocast; differentiable in image,
        text and scale.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.

    Source: Radford et al., Learning Transferable Visual Models From Natural Language Supervision,
    ICML 2021, figure 3.

    >>> loss = clip_loss(image_encoder(images), text_encoder(texts), logit_scale.exp())
    """
    labels, text_labels = _check(image, text, labels)
    check_option("scale", scale, above_zero=True)
    if isinstance(scale, Tensor):
        if (value := readable(scale)) is not None:
            check_option("scale", value, above_zero=True)
        scale = scale.to(compute_dtype(image))  # in half its inverse would be that of another
    rule, shared = NTXent(1 / scale), PairOptions()
    if backend == "reference" or getattr(labels, "ndim", 1) == 2:
        given = {"weighting": rule, "backend": backend}
        there = pair_loss(image, labels, text, text_labels, **given)  # type: ignore[call-overload]
        back = pair_loss(text, text_labels, image, labels, **given)  # type: ignore[call-overload]
        return (there + back) / 2  # type: ignore[no-any-return]
    refuse_tracing("clip_loss")
    pairs = check_pairs(image, labels, text, text_labels, None, None)
    if isinstance(scale, Tensor):
        pairs, weighting, shared = take_in(pairs, rule, shared)
        assert isinstance(weighting, NTXent)
        rule = weighting
    loss_of(rule, NO_MINING, shared, backend)
    # By their names: see made_spec.
    spec = PairSpec(weighting=rule, mining=NO_MINING, normalize=shared.normalize, two_sided=True)
    dispatch.check_known(backend, spec, rule, NO_MINING)
    return in_public_dtype(fused_loss(pairs, spec, "mean", backend), image, "mean")


@names_the_way
def siglip_loss(
    image: Tensor,
    text: Tensor,
    scale: float | Tensor = SigLIP.scale,
    bias: float | Tensor = SigLIP.bias,
    *,
    labels: Tensor | None = None,
    backend: str = "auto",
) -> Tensor:
    """The sigmoid loss of SigLIP: over all pairs, the sum of log(1 + exp(-z (scale S + bias))) / N,
    z = 1 of an image with its text, else -1; S = image . text are cosines.

    Args:
        scale, bias: numbers, or tensors of shape () that learn. Defaults 10, -10.
        The rest as in `clip_loss`; images and texts of one label are pairs with z = 1.

    Returns:
        The loss as of `clip_loss`; differentiable in image, text, scale and bias.

    Raises:
        TypeError, ValueError: before any work, for an argument that does not fit.

    Source: Zhai et al., Sigmoid Loss for Language Image Pre-Training, ICCV 2023, equation 1.

    >>> loss = siglip_loss(image_encoder(images), text_encoder(texts), t.exp(), bias)
    """
    labels, text_labels = _check(image, text, labels)
    check_option("scale", scale, above_zero=True)
    rule = SigLIP(scale, bias)
    return pair_loss(image, labels, text, text_labels, weighting=rule, backend=backend)


def _check(image: Tensor, text: Tensor, labels: Tensor | None) -> tuple[Tensor, Tensor]:
    """By the names of the arguments; the labels of both sides, as two objects: of the very objects
    of one side, as of an encoder with itself, the other would be taken for that side."""
    for name, rows in (("image", image), ("text", text)):
        if not isinstance(rows, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(rows).__name__}")
        if rows.ndim != 2:
            raise ValueError(f"{name}: expected shape (N, D), got {tuple(rows.shape)}")
    if image.shape != text.shape:
        raise ValueError(
            f"text: expected shape {tuple(image.shape)} as image has it, got {tuple(text.shape)}"
        )
    if image.dtype != text.dtype:
        raise TypeError(f"text: expected dtype {image.dtype} as image has it, got {text.dtype}")
    check_device("text", text, "image", image)
    if labels is None:
        labels = torch.arange(image.shape[0], device=image.device)
    return labels, labels.detach() if isinstance(labels, Tensor) else labels
