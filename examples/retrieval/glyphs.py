"""A data set that pip can bring: the characters of some hundred fonts.

A class is a character, an image is how a font draws it. Characters come in the order of their code
points, so the first half of the classes is Latin and the other, which no step of a training sees,
mostly Greek and Cyrillic. A query finds characters of other families alone: the bold of its own
font would be no find.

Left out are images that equal another of their class, since fonts of several scripts share their
Latin; and characters that look alike in most fonts, such as the Latin and the Greek capital A, are
one class.
"""

import hashlib
import importlib.util
import unicodedata
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

from examples.retrieval.layouts import Benchmark
from examples.retrieval.refusal import Refusal

PACKAGE, FOLDER = "pretix_fontpackfree", "static"
SIZE, HEIGHT, BASELINE = 32, 22, 23  # pixels: of the image, of an em, of the base line from above
FIRST, LAST = 0x21, 0x52F  # code points: Latin, Greek, Cyrillic
KINDS = ("Lu", "Ll", "Nd")  # capital and small letters, digits
LEAST, FAMILIES = 20, 4  # images and families that a class must have


class Glyph(NamedTuple):
    family: str
    pixels: bytes


class Glyphs:
    """Images in memory. groups: the family of each, by number."""

    def __init__(self, glyphs: list[Glyph], labels: list[int], names: list[str]) -> None:
        families = {family: k for k, family in enumerate(sorted({g.family for g in glyphs}))}
        self.glyphs, self.labels, self.names = glyphs, labels, names
        self.groups = [families[glyph.family] for glyph in glyphs]

    def read(self, index: int) -> Image.Image:
        pixels = np.frombuffer(self.glyphs[index].pixels, dtype=np.uint8)
        return Image.fromarray(pixels.reshape(SIZE, SIZE))

    def name(self, index: int) -> str:
        return f"{self.names[index]} in {self.glyphs[index].family}"

    def key(self, index: int) -> str:
        pixels = hashlib.blake2b(self.glyphs[index].pixels, digest_size=8).hexdigest()
        return f"{self.name(index)} {pixels}"


def glyphs(root: Path | None) -> Benchmark:
    """root: a folder of fonts; default: those of the package pretix-fontpack-free."""
    folder = root or _packaged()
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".ttf", ".otf"))
    if not paths:
        raise Refusal(f"--root: expected fonts (.ttf, .otf) in {folder}, got none")
    drawn: dict[str, list[Glyph]] = defaultdict(list)
    alike: Counter[tuple[str, str]] = Counter()
    for path in tqdm(paths, desc="drawing", unit="font", delay=2, disable=None):
        _draw(path, drawn, alike)
    classes = [
        (characters, images)
        for characters in _merged(drawn, alike)
        if len(images := _distinct(characters, drawn)) >= LEAST
        and len({glyph.family for glyph, _ in images}) >= FAMILIES
    ]
    if len(classes) < 2:
        raise Refusal(
            f"--root: expected fonts that share at least 2 characters, drawn in {LEAST} ways by "
            f"{FAMILIES} families, got {len(classes)} from {len(paths)} fonts in {folder}; choose "
            "a folder with more fonts"
        )
    half = len(classes) // 2
    train, test = _images(classes[:half], 0), _images(classes[half:], half)
    return Benchmark("glyphs", train, test, None, (1, 2, 4, 8), channels=1, flip=False)


def _packaged() -> Path:
    found = importlib.util.find_spec(PACKAGE)
    if found is None or found.origin is None:
        raise Refusal(
            "--dataset glyphs: expected the fonts of pretix-fontpack-free, got none: pip install "
            "--no-deps pretix-fontpack-free, or give a folder of fonts by --root"
        )
    return Path(found.origin).parent / FOLDER


def _draw(path: Path, drawn: dict[str, list[Glyph]], alike: Counter[tuple[str, str]]) -> None:
    """Adds a font's characters, and the pairs of them that it draws as one."""
    family, characters = _characters(path)
    font = ImageFont.truetype(str(path), HEIGHT, layout_engine=ImageFont.Layout.BASIC)
    same: dict[bytes, list[str]] = defaultdict(list)
    for character in characters:
        image = Image.new("L", (SIZE, SIZE))
        ImageDraw.Draw(image).text((SIZE / 2, BASELINE), character, 255, font, anchor="ms")
        pixels = image.tobytes()
        if any(pixels):
            drawn[character].append(Glyph(family, pixels))
            same[pixels].append(character)
    for group in same.values():
        for k, one in enumerate(group):
            alike.update((one, other) for other in group[k + 1 :])


def _characters(path: Path) -> tuple[str, list[str]]:
    """The family of a font, and what it has of the code points."""
    try:
        from fontTools.ttLib import TTFont
        from fontTools.ttLib.ttFont import TTLibError
    except ImportError as error:
        raise Refusal(
            "--dataset glyphs: expected fonttools to read fonts, got none: pip install fonttools"
        ) from error
    try:
        with TTFont(path, lazy=True) as font:
            points, family = font.getBestCmap(), font["name"].getBestFamilyName()
    except (TTLibError, OSError, KeyError) as error:
        raise Refusal(f"{path}: expected a font, got one that cannot be read ({error})") from error
    found = [chr(point) for point in sorted(points or {}) if FIRST <= point <= LAST]
    # "Titillium Web" and "Titillium" are one family, and so are Noto Sans of every script.
    return " ".join(family.split()[:2]), [c for c in found if unicodedata.category(c) in KINDS]


def _merged(drawn: dict[str, list[Glyph]], alike: Counter[tuple[str, str]]) -> list[list[str]]:
    """Classes of characters: those that look alike in half of the fonts that have both, or more."""
    head = {character: character for character in drawn}

    def find(character: str) -> str:
        while head[character] != character:
            character = head[character]
        return character

    for (one, other), times in sorted(alike.items()):
        if 2 * times >= min(len(drawn[one]), len(drawn[other])):
            first, second = sorted((find(one), find(other)))
            head[second] = first
    classes: dict[str, list[str]] = defaultdict(list)
    for character in sorted(drawn):
        classes[find(character)].append(character)
    return [classes[first] for first in sorted(classes)]


def _distinct(characters: list[str], drawn: dict[str, list[Glyph]]) -> list[tuple[Glyph, str]]:
    found: dict[bytes, tuple[Glyph, str]] = {}
    for character in characters:
        for glyph in drawn[character]:
            found.setdefault(glyph.pixels, (glyph, character))
    return list(found.values())


def _images(classes: list[tuple[list[str], list[tuple[Glyph, str]]]], first: int) -> Glyphs:
    images = [image for _, some in classes for image in some]
    labels = [label for label, (_, some) in enumerate(classes, first) for _ in some]
    return Glyphs([glyph for glyph, _ in images], labels, [name for _, name in images])
