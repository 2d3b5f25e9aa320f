"""What examples/retrieval shows of a run: scores that leave out what they say, and the picture."""

import math

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")

from examples.retrieval.evaluate import Embedded, scores_of  # noqa: E402
from examples.retrieval.layouts import Benchmark  # noqa: E402
from examples.retrieval.report import FOUND, WRONG, draw_neighbours  # noqa: E402


class Grey:
    """An image is of the grey of its number."""

    def __init__(self, labels):
        self.labels = labels

    def read(self, index):
        return Image.new("L", (4, 4), 10 * index + 10)


def at(*degrees):
    turns = torch.tensor(degrees, dtype=torch.float32) * math.pi / 180
    return torch.stack([turns.cos(), turns.sin()], dim=1)


def test_images_of_the_query_s_group_are_left_out():
    """The nearest has its label, but is of its family; the next has another label."""
    labels, groups = torch.tensor([0, 0, 1, 0, 1]), torch.tensor([0, 0, 1, 1, 2])
    rows = at(0, 1, 5, 20, 60)
    with_them = scores_of(Embedded(rows, labels, None, None, None), (1,)).of_queries.first
    without = scores_of(Embedded(rows, labels, None, None, groups), (1,)).of_queries.first
    assert with_them[:2].tolist() == [1, 1] and without[:2].tolist() == [2, 2]
    gallery = Embedded(rows[:2], labels[:2], rows[2:], labels[2:], None)
    assert scores_of(gallery, (1, 3)).of_queries.first.tolist() == [2, 2]


def drawn(monkeypatch, tmp_path, embedded, benchmark):
    """{(row, column): (image, right)}, of a picture that was saved."""
    figure = pytest.importorskip("matplotlib.figure").Figure
    same_color = pytest.importorskip("matplotlib.colors").same_color
    kept, save = [], figure.savefig

    def noted(self, *arguments, **options):
        kept.append(self)
        return save(self, *arguments, **options)

    monkeypatch.setattr(figure, "savefig", noted)
    draw_neighbours(embedded, benchmark, tmp_path / "neighbours.png")
    picture = np.asarray(Image.open(tmp_path / "neighbours.png").convert("RGB"))
    assert picture.std() > 10
    (ax,) = kept[0].axes
    cells = {}
    for image in ax.images:
        left, _, low, high = image.get_extent()
        place = round(min(low, high) - 0.06), round(left - 0.06)
        cells[place] = [(int(np.asarray(image.get_array())[0, 0]) - 10) // 10, None]
    for patch in ax.patches:
        left, top = patch.get_xy()
        color = patch.get_edgecolor()
        assert same_color(color, FOUND) != same_color(color, WRONG)
        cells[round(top - 0.06), round(left - 0.06)][1] = bool(same_color(color, FOUND))
    crosses = {(int(line.get_ydata()[0]), int(line.get_xdata()[0])) for line in ax.lines}
    assert crosses == {place for place, (_, right) in cells.items() if right is False}
    return cells


def test_the_picture_shows_the_neighbours_and_which_are_right(monkeypatch, tmp_path):
    images = Grey([0, 0, 1, 1])
    embedded = Embedded(at(0, 10, 13, 60), torch.tensor(images.labels), None, None, None)
    cells = drawn(monkeypatch, tmp_path, embedded, Benchmark("x", images, images, None, (1,)))
    found = [[cells[row, column] for column in range(4)] for row in range(4)]
    assert found == [
        [[0, None], [1, True], [2, False], [3, False]],
        [[1, None], [2, False], [0, True], [3, False]],
        [[2, None], [1, False], [0, False], [3, True]],
        [[3, None], [2, True], [1, False], [0, False]],
    ]


def test_the_picture_leaves_out_the_query_s_group(monkeypatch, tmp_path):
    images = Grey([0, 0, 0, 1])
    labels, groups = torch.tensor(images.labels), torch.tensor([7, 7, 8, 8])
    embedded = Embedded(at(0, 1, 5, 20), labels, None, None, groups)
    cells = drawn(monkeypatch, tmp_path, embedded, Benchmark("x", images, images, None, (1,)))
    assert [cells.get((0, column)) for column in range(4)] == [
        [0, None], [2, True], [3, False], None,
    ]  # fmt: skip


def test_a_picture_that_breaks_off_leaves_the_last_one(monkeypatch, tmp_path):
    figure = pytest.importorskip("matplotlib.figure").Figure
    path = tmp_path / "neighbours.png"
    path.write_bytes(b"the last one")

    def fails(self, where, **_):
        where.write_bytes(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(figure, "savefig", fails)
    images = Grey([0, 0, 1, 1])
    embedded = Embedded(at(0, 10, 13, 60), torch.tensor(images.labels), None, None, None)
    with pytest.raises(OSError):
        draw_neighbours(embedded, Benchmark("x", images, images, None, (1,)), path)
    assert path.read_bytes() == b"the last one"


def test_the_picture_of_a_gallery(monkeypatch, tmp_path):
    query, gallery = Grey([5, 6]), Grey([6, 5, 5])
    labels, gallery_labels = torch.tensor(query.labels), torch.tensor(gallery.labels)
    embedded = Embedded(at(0, 90), labels, at(80, 20, 10), gallery_labels, None)
    cells = drawn(monkeypatch, tmp_path, embedded, Benchmark("x", query, query, gallery, (1,)))
    assert [cells[0, column] for column in range(3)] == [[0, None], [2, True], [1, True]]
    assert [cells[1, column] for column in range(3)] == [[1, None], [0, True], [1, False]]
