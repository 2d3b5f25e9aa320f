"""Everything once, on tiny data sets in each of the four layouts: does it run here?"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from examples.retrieval.options import Options

CLASSES, IMAGES, SIDE = 6, 4, 20


class Tiny(NamedTuple):
    """What a layout calls its images; written once each."""

    root: Path

    def image(self, place: str, label: int, number: int) -> str:
        """A class is a colour; a path below the root."""
        chance = np.random.default_rng([label, number])
        colour = np.random.default_rng(label).integers(60, 200, 3)
        pixels = colour + chance.integers(-50, 50, (SIDE, SIDE + 4, 3))
        path = self.root / place
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.astype(np.uint8)).save(path, quality=95)
        return place

    def text(self, place: str, lines: list[str]) -> None:
        (self.root / place).parent.mkdir(parents=True, exist_ok=True)
        (self.root / place).write_text("\n".join(lines) + "\n")


ALL = [(label, number) for label in range(1, CLASSES + 1) for number in range(IMAGES)]


def tiny_cub(root: Path) -> None:
    tiny = Tiny(root / "CUB_200_2011")
    names = [f"{label:03}.Bird/Bird_{label}_{number}.jpg" for label, number in ALL]
    for name, (label, number) in zip(names, ALL, strict=True):
        tiny.image(f"images/{name}", label, number)
    tiny.text("images.txt", [f"{k} {name}" for k, name in enumerate(names, 1)])
    tiny.text("image_class_labels.txt", [f"{k} {label}" for k, (label, _) in enumerate(ALL, 1)])


def tiny_cars(root: Path) -> None:
    try:
        from scipy.io import savemat
    except ImportError:
        for label, number in ALL:
            Tiny(root).image(f"{label:03}/{number}.jpg", label, number)
        return
    kinds = [("relative_im_path", object), ("class", object), ("test", object)]
    annotations = np.zeros((1, len(ALL)), dtype=kinds)
    for k, (label, number) in enumerate(ALL):
        place = Tiny(root).image(f"car_ims/{k + 1:06}.jpg", label, number)
        annotations[0, k] = place, np.array([[label]], dtype=np.uint8), np.array([[0]], np.uint8)
    savemat(root / "cars_annos.mat", {"annotations": annotations})


def tiny_sop(root: Path) -> None:
    tiny = Tiny(root / "Stanford_Online_Products")
    for file, first in (("train", True), ("test", False)):
        lines = ["image_id class_id super_class_id path"]
        for k, (label, number) in enumerate(ALL, 1):
            if (label <= CLASSES // 2) == first:
                place = tiny.image(f"chair_final/{label}_{number}.JPG", label, number)
                lines.append(f"{k} {label} 1 {place}")
        tiny.text(f"Ebay_{file}.txt", lines)


def tiny_inshop(root: Path) -> None:
    tiny = Tiny(root)
    lines = [str(len(ALL)), "image_name item_id evaluation_status"]
    for label, number in ALL:
        test = "query" if number < 1 else "gallery"
        status = "train" if label <= CLASSES // 2 else test
        place = f"img/WOMEN/Tees/id_{label:08}/{number:02}_1_front.jpg"
        tiny.image(f"Img/{place}", label, number)
        lines.append(f"{place:<60} id_{label:08} {status}")
    tiny.text("Eval/list_eval_partition.txt", lines)


TINY: dict[str, Callable[[Path], None]] = {
    "cub": tiny_cub,
    "cars": tiny_cars,
    "sop": tiny_sop,
    "inshop": tiny_inshop,
}
# Small enough for seconds.
SETTINGS = {
    "classes": 2,
    "images": 3,
    "dim": 16,
    "backbone": "small",
    "size": 16,
    "steps": 4,
    "lr": 1e-3,
    "save_every": 2,
    "evaluate_every": 2,
    "ks": (1, 2),
}


def make_tiny(dataset: str, folder: Path) -> None:
    """The data set, below a folder."""
    root = folder / dataset
    root.mkdir(parents=True, exist_ok=True)
    TINY[dataset](root)


def dry_options(dataset: str, folder: Path, **changed: object) -> Options:
    """A run of the data set that `make_tiny` makes there."""
    given = {
        "root": str(folder / dataset),
        "output": str(folder / f"{dataset}-run"),
        **SETTINGS,
        **changed,
    }
    return Options(dataset=dataset, **given)  # type: ignore[arg-type]
