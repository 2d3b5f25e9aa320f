"""An embedding: backbone, linear head, L2."""

import contextlib
import importlib
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from examples.retrieval.images import GREY, IMAGENET, Normalisation
from examples.retrieval.refusal import Refusal

# What classifiers are called: these make room for the head.
HEADS = ("fc", "classifier", "head", "heads", "last_linear")
BESIDE = ("AuxLogits", "aux1", "aux2")
NORMS = (nn.modules.batchnorm._BatchNorm,)


class Embedder(nn.Module):
    """(N, channels, size, size) images to (N, D) unit rows.

    frozen_norm: batch normalisation keeps the statistics that it was given, as the paper has it;
    its scale and shift learn. normalisation: what the backbone takes, by default ImageNet's.
    """

    def __init__(
        self,
        backbone: nn.Module,
        features: int,
        dim: int,
        frozen_norm: bool,
        normalisation: Normalisation = IMAGENET,
    ) -> None:
        super().__init__()
        self.normalisation = normalisation
        self.backbone, self.head = backbone, nn.Linear(features, dim)
        self.frozen_norm = frozen_norm

    def forward(self, images: Tensor) -> Tensor:
        return normalize(self.head(self.backbone(images).flatten(1)), dim=1)

    def train(self, mode: bool = True) -> "Embedder":
        super().train(mode)
        if self.frozen_norm:
            for module in self.modules():
                if isinstance(module, NORMS):
                    module.eval()
        return self


def small(channels: int) -> nn.Module:
    """Four convolutions, for small images and no published weights; normalised by groups, which
    do not know of other images of the batch."""
    layers: list[nn.Module] = []
    widths = (channels, 32, 64, 128, 128)
    for k, (inputs, outputs) in enumerate(zip(widths, widths[1:], strict=False)):
        conv = nn.Conv2d(inputs, outputs, 5 if k == 0 else 3, stride=2, padding=2 if k == 0 else 1)
        layers += [conv, nn.GroupNorm(8, outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten())


def backbone_of(name: str, channels: int, size: int, pretrained: bool) -> tuple[nn.Module, int]:
    """A backbone and how many features it has.

    name: "small"; "timm/NAME" or "torchvision/NAME"; or "module:function", your own, which is
    called without arguments and returns a network, with a classifier or without.
    """
    if name == "small":
        model: Any = small(channels)
    elif name.startswith("timm/"):
        model = _of_timm(name, channels, size, pretrained)
    elif name.startswith("torchvision/"):
        model = _of_torchvision(name, pretrained)
    elif ":" in name:
        model = headless(_own(name))
    else:
        raise Refusal(
            "--backbone: expected 'small', 'timm/NAME', 'torchvision/NAME' or 'module:function', "
            f"got {name!r}; for example torchvision/resnet50 or timm/vit_small_patch16_224"
        )
    model.eval()
    try:
        with torch.no_grad():
            found = model(torch.zeros(2, channels, size, size))
    except (RuntimeError, ValueError, AssertionError) as error:
        raise Refusal(
            f"--backbone: expected {name} to take images of {channels} x {size} x {size}, got "
            f"{error}"
        ) from error
    return model, found.flatten(1).shape[1]


def normalisation_of(model: Any, channels: int) -> Normalisation:
    """What a backbone says that it takes: by mean and std, input_space and input_range of its own,
    as pretrainedmodels has them, or by timm's pretrained_cfg; else ImageNet's."""
    if channels == 1:
        return GREY
    said: Any = getattr(model, "pretrained_cfg", None) or {}
    said = dict(said) if isinstance(said, dict) else vars(said)
    for name in ("mean", "std", "input_space", "input_range"):
        if getattr(model, name, None) is not None:
            said[name] = getattr(model, name)
    mean, std = said.get("mean", IMAGENET.mean), said.get("std", IMAGENET.std)
    space, wide = said.get("input_space", "RGB"), said.get("input_range", (0, 1))
    try:
        numbers = [[float(number) for number in values] for values in (mean, std, wide)]
    except (TypeError, ValueError):
        numbers = [[], [], []]
    found, deviation, limits = numbers
    fits = len(found) == len(deviation) == 3 and len(limits) == 2 and limits[0] == 0 < limits[1]
    fits = fits and min(deviation) > 0 and ("mean" in said) == ("std" in said)
    if not fits or space not in ("RGB", "BGR"):
        raise Refusal(
            "--backbone: expected mean and std of 3 numbers, std above 0, input_space RGB or BGR, "
            f"and input_range from 0 up, got mean {said.get('mean')}, std {said.get('std')}, "
            f"input_space {space!r}, input_range {wide}"
        )
    return Normalisation(tuple(found), tuple(deviation), space, limits[1])


def _of_timm(name: str, channels: int, size: int, pretrained: bool) -> Any:
    timm, known = _library("timm", name), name.removeprefix("timm/")
    if not timm.is_model(known):
        close = ", ".join(get_close_matches(known, timm.list_models(), 3)) or "none"
        raise Refusal(f"--backbone: expected a model of timm, got {known!r}; it has {close}")
    options = {"num_classes": 0, "in_chans": channels, "pretrained": pretrained}
    if known.startswith(("vit", "deit")):
        options["img_size"] = size
    with _weights(name):
        return timm.create_model(known, **options)


def _of_torchvision(name: str, pretrained: bool) -> Any:
    models, known = _library("torchvision", name).models, name.removeprefix("torchvision/")
    there = models.list_models(module=models)
    if known not in there:
        close = ", ".join(get_close_matches(known, there, 3)) or "none"
        raise Refusal(
            f"--backbone: expected a classifier of torchvision, got {known!r}; it has {close}"
        )
    with _weights(name):
        return headless(models.get_model(known, weights="DEFAULT" if pretrained else None))


@contextlib.contextmanager
def _weights(name: str) -> Iterator[None]:
    """Libraries fetch them by ways of their own, which fail in ways of their own."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().splitlines()
        raise Refusal(
            f"--backbone: expected {name} with its published weights, got {type(error).__name__}: "
            f"{reason[0] if reason else ''}; they are fetched once, from the network, or start "
            "without by --no-pretrained"
        ) from error


def headless(model: Any) -> Any:
    """Without its classifier, if it has one by one of the usual names, and without what answers
    beside it in training alone."""
    for beside in BESIDE:
        if getattr(model, beside, None) is not None:
            setattr(model, beside, None)
            model.aux_logits = False
    for head in HEADS:
        if isinstance(getattr(model, head, None), nn.Module):
            setattr(model, head, nn.Identity())
            break
    return model


def _library(library: str, name: str) -> Any:
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise Refusal(
            f"--backbone: expected {library} to be installed for {name!r}: pip install {library}, "
            "or take --backbone small"
        ) from error
    except (RuntimeError, OSError) as error:  # its compiled part is another torch's
        raise Refusal(
            f"--backbone: expected a {library} that fits torch {torch.__version__}, got one that "
            f"cannot be imported ({error}); install the version made for it"
        ) from error


def _own(name: str) -> nn.Module:
    module, _, function = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError, TypeError) as error:
        raise Refusal(
            f"--backbone: expected a function without arguments at {name!r}, got {error}"
        ) from error
    if not isinstance(found, nn.Module):
        raise Refusal(f"--backbone: expected {name!r} to return a Module, got {found!r}")
    return found
