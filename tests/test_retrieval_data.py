"""What examples/retrieval reads and draws: layouts, fonts, batches, crops, losses by name."""

from pathlib import Path

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")

from retrieval_program import tiny_image, tiny_roots  # noqa: E402

from examples.retrieval import glyphs, sampler  # noqa: E402
from examples.retrieval.criterion import LOSSES, MININGS, criterion_of  # noqa: E402
from examples.retrieval.dry_run import CLASSES, IMAGES  # noqa: E402
from examples.retrieval.evaluate import ks_of  # noqa: E402
from examples.retrieval.images import Crops, Files, for_test, for_training, seeded  # noqa: E402
from examples.retrieval.layouts import LAYOUTS, Benchmark  # noqa: E402
from examples.retrieval.options import Options  # noqa: E402
from examples.retrieval.refusal import Refusal  # noqa: E402
from examples.retrieval.released import other_than_released  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_roots(tmp_path_factory)


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_protocol_of_each_layout(tiny, name):
    found = LAYOUTS[name](tiny[name])
    half = CLASSES // 2
    assert len(found.train.labels) == half * IMAGES and len(set(found.train.labels)) == half
    assert not set(found.train.labels) & set(found.query.labels)
    assert (found.gallery is not None) == (name == "inshop")
    if found.gallery is not None:
        assert set(found.gallery.labels) == set(found.query.labels)
        assert len(found.query.labels) == half and len(found.gallery.labels) == half * (IMAGES - 1)
    assert found.train.read(0).size == (24, 20)
    assert found.ks[0] == 1


def test_cars_may_be_a_folder_for_each_class(tmp_path):
    for label, number in [(1, 0), (1, 1), (2, 0), (2, 1)]:
        tiny_image(tmp_path / f"{label}" / f"{number}.jpg")
    found = LAYOUTS["cars"](tmp_path)
    assert found.train.labels == [1, 1] and found.query.labels == [2, 2]


# As released, in another order than that of text; 98 of the 196 train, and Eagle is the last.
MODELS = (
    "AM General Hummer SUV 2000",
    "Acura TSX Sedan 2012",
    "Acura Integra Type R 2001",
    "Audi 100 Sedan 1994",
    "Eagle Talon Hatchback 1998",
    "FIAT 500 Abarth 2012",
    "Ferrari FF Coupe 2012",
    "Ferrari 458 Italia Coupe 2012",
    "Volvo XC90 SUV 2007",
    "smart fortwo Convertible 2012",
)


@pytest.mark.parametrize(
    "folders",
    [
        [str(number) for number in range(1, 13)],
        [f"class {number}" for number in range(1, 13)],
        [f"{number:03}" for number in range(1, 13)],
        MODELS,
    ],
    ids=["numbers", "classes", "zeros", "models"],
)
def test_folders_of_cars_are_halved_as_the_released_classes(tmp_path, folders):
    for folder in sorted(folders):
        tiny_image(tmp_path / folder / "0.jpg")
    found = LAYOUTS["cars"](tmp_path)
    half = len(folders) // 2
    train, query = ({path.parent.name for path in part.paths} for part in found.parts.values())
    assert train == set(folders[:half]) and query == set(folders[half:])
    if folders is not MODELS:
        names = [path.parent.name for part in (found.train, found.query) for path in part.paths]
        assert names == list(folders)


class Numbered:
    """So many images of so many classes, from the class `first` on."""

    def __init__(self, images, classes, first=0):
        self.labels = [first + k % classes for k in range(images)]


def test_other_numbers_than_the_released_ones_are_told(tiny):
    whole = {
        "cub": [Numbered(5864, 100), Numbered(5924, 100, 100), None],
        "cars": [Numbered(8054, 98), Numbered(8131, 98, 98), None],
        "sop": [Numbered(59551, 11318), Numbered(60502, 11316, 11318), None],
        "inshop": [Numbered(25882, 3997), Numbered(14218, 3985, 3997), Numbered(12612, 3985, 3997)],
    }
    for name, (train, query, gallery) in whole.items():
        found = Benchmark(name, train, query, gallery, (1,))
        assert other_than_released(found) is None
        train.labels = train.labels[:-1]
        assert "not the released" in other_than_released(found)
    told = other_than_released(LAYOUTS["sop"](tiny["sop"]))
    assert told.startswith(
        "train: 12 images of 3 classes, not the released 59,551 images of 11,318 classes\nquery: 12"
    )
    told = other_than_released(LAYOUTS["cars"](tiny["cars"]))
    assert "24 images of 6 classes, not the released 16,185 images of 196 classes" in told


def test_the_literature_s_k_are_those_that_a_small_gallery_has(tiny):
    found = LAYOUTS["sop"](tiny["sop"])
    assert ks_of(Options("sop"), found) == (1, 10)
    with pytest.raises(Refusal, match="--ks: expected numbers from 1 to 11"):
        ks_of(Options("sop", ks=(1, 100)), found)


def test_batches_have_classes_and_images():
    labels = [0] * 3 + [1] * 7 + [2] + [3] * 2 + [4] * 5
    batches = sampler.ClassSampler(labels, 2, 4, seed=1)
    assert batches.left_out == 1 and batches.epoch_steps == 2
    draws = []
    for epoch in range(3):
        seen = []
        for step in range(2 * epoch, 2 * epoch + 2):
            batch = batches.batch(step)
            assert batch == batches.batch(step)
            assert [labels[index] for index, _ in batch.items] == batch.labels
            for part in (batch.items[:4], batch.items[4:]):
                indices = [index for index, _ in part]
                (label,) = {labels[index] for index in indices}
                seen.append(label)
                assert len(set(indices)) == min(4, labels.count(label))
            draws += [draw for _, draw in batch.items]
        assert sorted(seen) == [0, 1, 3, 4]
    assert len(set(draws)) == len(draws)
    assert batches.batch(0) != sampler.ClassSampler(labels, 2, 4, seed=2).batch(0)
    whole = list(range(10))
    assert [sampler.share(whole, rank, 3) for rank in range(3)] == [
        [0, 1, 2],
        [3, 4, 5],
        [6, 7, 8, 9],
    ]


def test_crops_lie_in_the_image_and_are_those_of_their_draw(tmp_path):
    tiny_image(tmp_path / "a.jpg")
    image = Files(tmp_path, [tmp_path / "a.jpg"], [0]).read(0)
    crops = Crops(16, 0.2, True)
    one, again = (for_training(image, crops, seeded("crop", 0, 5)) for _ in range(2))
    assert one.size == (16, 16) and one.tobytes() == again.tobytes()


def ramp():
    """A pixel tells its place: red from the left, green from above."""
    across, down = np.meshgrid(np.arange(80), np.arange(60))
    return Image.fromarray(np.stack([across, down, 0 * down], axis=2).astype(np.uint8))


def test_crops_and_flips_happen():
    places, flipped = set(), []
    for draw in range(40):
        found = np.asarray(for_training(ramp(), Crops(16, 0.2, True), seeded("crop", 0, draw)), int)
        left, right = found[8, 0, 0], found[8, -1, 0]
        flipped.append(left > right)
        width, height = abs(right - left), found[-1, 8, 1] - found[0, 8, 1]
        assert 0.1 * 80 * 60 < width * height <= 80 * 60
        places.add((min(left, right), found[0, 8, 1], width, height))
        still = for_training(ramp(), Crops(16, 0.2, False), seeded("crop", 0, draw))
        assert np.asarray(still, int)[8, 0, 0] < np.asarray(still, int)[8, -1, 0]
    assert 10 < sum(flipped) < 30 and len(places) > 30
    assert len({width for _, _, width, _ in places}) > 10


def test_test_images_are_cut_from_the_middle():
    found = np.asarray(for_test(ramp(), 16, 1.5), int)
    assert np.abs(found[8, [0, -1], 0] - [21, 58]).max() <= 1
    assert np.abs(found[[0, -1], 8, 1] - [11, 48]).max() <= 1


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_of_the_family_trains(loss):
    options = Options("cub", loss=loss, dim=4)
    x = torch.nn.functional.normalize(torch.randn(12, 4)).requires_grad_()
    criterion_of(options)(x, torch.arange(12) // 3, ids=torch.arange(12)).backward()
    assert x.grad.isfinite().all() and x.grad.any()


@pytest.mark.parametrize("mining", MININGS)
def test_every_mining_rule_trains(mining):
    x = torch.nn.functional.normalize(torch.randn(12, 4)).requires_grad_()
    criterion_of(Options("cub", mining=mining))(x, torch.arange(12) // 3).backward()
    assert x.grad.isfinite().all()


def test_glyphs_are_classes_that_fonts_draw(monkeypatch, tmp_path):
    matplotlib = pytest.importorskip("matplotlib")
    pytest.importorskip("fontTools")
    fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    monkeypatch.setattr(glyphs, "LAST", 0x7E)
    monkeypatch.setattr(glyphs, "LEAST", 6)
    monkeypatch.setattr(glyphs, "FAMILIES", 2)
    found = glyphs.glyphs(fonts)
    assert len(set(found.train.labels)) >= 25 and not (
        set(found.train.labels) & set(found.query.labels)
    )
    assert len(found.query.groups) == len(found.query.labels)
    assert found.query.read(0).size == (32, 32)
    pixels = {
        (label, g.pixels) for label, g in zip(found.query.labels, found.query.glyphs, strict=True)
    }
    assert len(pixels) == len(found.query.labels)
    with pytest.raises(Refusal, match="expected fonts .* in .*, got none"):
        glyphs.glyphs(tmp_path)
