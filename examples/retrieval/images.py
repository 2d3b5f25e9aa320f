"""Images with their classes; decoded, cropped and flipped by Pillow.

Chance is a function of (seed, draw), where a draw has a number of its own: whichever process or
worker decodes an image, it is the same, and a run that goes on needs no state of it.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from examples.retrieval.refusal import Refusal

# A test image is scaled so that its shorter side is so much more than the crop: 256 to 224.
MARGIN = 256 / 224
TRIES = 10


class Normalisation(NamedTuple):
    """What a network takes: (pixels - mean) / std of each channel, in the order of `space`, RGB,
    BGR or L, of pixels from 0 to `most`."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    space: str = "RGB"
    most: float = 1.0

    def __str__(self) -> str:
        mean, std = (", ".join(f"{x:g}" for x in values) for values in (self.mean, self.std))
        return f"{self.space} from 0 to {self.most:g}, less {mean}, over {std}"


# Of the weights that torchvision and most of timm publish.
IMAGENET = Normalisation((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = Normalisation((0.5,), (0.5,), "L")


class Images(Protocol):
    """labels: a number for the class of each image."""

    @property
    def labels(self) -> Sequence[int]: ...

    def read(self, index: int) -> Image.Image: ...

    def name(self, index: int) -> str: ...

    def key(self, index: int) -> str:
        """A name that is the same wherever the images lie."""
        ...


def told(images: Images) -> tuple[int, str]:
    """Which images, in which order and of which classes: their number, and a digest."""
    digest = hashlib.blake2b(digest_size=16)
    for index, label in enumerate(images.labels):
        digest.update(f"{label} {images.key(index)}\0".encode(errors="surrogateescape"))
    return len(images.labels), digest.hexdigest()


class Files:
    """Images in files below a folder."""

    def __init__(self, folder: Path, paths: Sequence[Path], labels: Sequence[int]) -> None:
        self.folder, self.paths, self.labels = folder, paths, labels

    def read(self, index: int) -> Image.Image:
        """A broken image is an error with its name: left out in silence, it would make the scores
        those of another data set."""
        path = self.paths[index]
        try:
            with Image.open(path) as image:
                if image.mode.startswith(("I", "F")):
                    raise Refusal(
                        f"{path}: expected an image of 8 bits a channel, got one of mode "
                        f"{image.mode}, whose white is not known; convert it beforehand"
                    )
                return image.convert("RGB")
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise Refusal(
                f"{path}: expected an image, got one that cannot be decoded ({error}); unpack it "
                "again, and see all such with: python -m examples.retrieval check"
            ) from error

    def name(self, index: int) -> str:
        return str(self.paths[index])

    def key(self, index: int) -> str:
        return self.paths[index].relative_to(self.folder).as_posix()


class Crops(NamedTuple):
    """How training images are cropped: a share of the area from `least` to 1, of an aspect from 3/4
    to 4/3, scaled to size x size; flipped half of the time, if so."""

    size: int
    least: float
    flip: bool


def seeded(*numbers: object) -> torch.Generator:
    """A generator for what these numbers name."""
    digest = hashlib.blake2b("/".join(map(str, numbers)).encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)


def for_training(image: Image.Image, crops: Crops, generator: torch.Generator) -> Image.Image:
    width, height = image.size
    left, top, w, h = _window(width, height, crops.least, generator)
    box = left, top, left + w, top + h
    image = image.resize((crops.size, crops.size), Image.Resampling.BILINEAR, box=box)
    if crops.flip and torch.rand((), generator=generator).item() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image


def _window(
    width: int, height: int, least: float, generator: torch.Generator
) -> tuple[float, float, float, float]:
    """Left, top, width and height; after some tries that do not fit, all of the image."""
    for _ in range(TRIES):
        chance = torch.rand(4, generator=generator, dtype=torch.float64).tolist()
        area = width * height * (least + (1 - least) * chance[0])
        aspect = math.exp(math.log(4 / 3) * (2 * chance[1] - 1))
        w, h = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if w <= width and h <= height:
            return (width - w) * chance[2], (height - h) * chance[3], w, h
    return 0.0, 0.0, float(width), float(height)


def for_test(image: Image.Image, size: int, margin: float) -> Image.Image:
    """The middle of the image."""
    width, height = image.size
    side = min(width, height) / margin
    left, top = (width - side) / 2, (height - side) / 2
    box = left, top, left + side, top + side
    return image.resize((size, size), Image.Resampling.BILINEAR, box=box)


def to_tensor(image: Image.Image, normalisation: Normalisation) -> Tensor:
    """(channels, size, size) float32."""
    mean, std, space, most = normalisation
    mode = "L" if space == "L" else "RGB"
    pixels = np.asarray(image.convert(mode), dtype=np.float32) / (255 / most)
    x = torch.from_numpy(pixels.reshape(*pixels.shape[:2], len(mode))).permute(2, 0, 1)
    x = x.flip(0) if space == "BGR" else x
    return (x - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


class Decoded(torch.utils.data.Dataset[Tensor]):
    """Tensors of images; of (index, draw) where images are drawn for training, else of an index."""

    def __init__(
        self, images: Images, normalisation: Normalisation, change: Callable[..., Image.Image]
    ) -> None:
        self.images, self.normalisation, self.change = images, normalisation, change

    def __getitem__(self, item: int | tuple[int, int]) -> Tensor:
        index, *draw = item if isinstance(item, tuple) else (item,)
        return to_tensor(self.change(self.images.read(index), *draw), self.normalisation)

    def __len__(self) -> int:
        return len(self.images.labels)


@dataclass(frozen=True)
class TrainingChange:
    """Picklable, for workers that are spawned."""

    crops: Crops
    seed: int

    def __call__(self, image: Image.Image, draw: int) -> Image.Image:
        return for_training(image, self.crops, seeded("crop", self.seed, draw))


@dataclass(frozen=True)
class TestChange:
    size: int
    margin: float

    def __call__(self, image: Image.Image) -> Image.Image:
        return for_test(image, self.size, self.margin)
