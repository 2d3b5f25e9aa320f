"""Bad input of examples/retrieval: what was found, what was expected, and nothing lost."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")

from retrieval_program import SMALL, program, run, spoil, tiny_image, tiny_roots  # noqa: E402

from examples.retrieval import checkpoint  # noqa: E402
from examples.retrieval.dry_run import dry_options, make_tiny  # noqa: E402
from examples.retrieval.images import Files  # noqa: E402
from examples.retrieval.layouts import LAYOUTS  # noqa: E402
from examples.retrieval.processes import Processes  # noqa: E402
from examples.retrieval.refusal import Refusal  # noqa: E402
from examples.retrieval.train import Run  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return tiny_roots(tmp_path_factory)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_is_named_and_what_was_done_is_saved(tmp_path, monkeypatch, capsys, workers):
    make_tiny("cub", tmp_path)
    given = dry_options("cub", tmp_path)
    images = sorted(Path(given.root).rglob("*.jpg"))
    for path in images[:2]:
        path.write_bytes(path.read_bytes()[:300])
    arguments = ["train", "--dataset", "cub", "--root", given.root, *SMALL, "--ks", "1"]
    arguments += ["--output", tmp_path / "run", "--workers", workers, "--steps", 50]
    assert run(monkeypatch, *arguments) == program.REFUSED
    told = capsys.readouterr().err
    assert re.search(
        r"retrieval train: .*Bird_1_[01].jpg: expected an image, got one that cannot be decoded",
        told,
    )
    assert "Traceback" not in told
    assert (tmp_path / "run" / checkpoint.NAME).exists()
    assert run(monkeypatch, "check", "--dataset", "cub", "--root", given.root) == program.REFUSED
    told = capsys.readouterr().err
    assert "2 of 24 images cannot be decoded" in told and str(images[1]) in told


def test_check_of_whole_images(monkeypatch, tiny, capsys):
    assert run(monkeypatch, "check", "--dataset", "inshop", "--root", tiny["inshop"]) == 0
    told = capsys.readouterr().out
    assert "all 24 images can be decoded" in told and "not the released 25,882 images" in told


def test_a_checkpoint_of_other_options_names_each_difference(tmp_path, tiny, monkeypatch, capsys):
    given = ["--dataset", "cub", "--root", tiny["cub"], *SMALL, "--ks", "1", "--output", tmp_path]
    assert run(monkeypatch, "train", *given, "--steps", "2") == 0
    before = (tmp_path / checkpoint.NAME).read_bytes()
    other = ["--resume", "--lr", "0.5", "--loss", "triplet", "--steps", "4"]
    assert run(monkeypatch, "train", *given, *other) == program.REFUSED
    told = capsys.readouterr().err
    assert "expected the options of its run, got 3 that differ:" in told
    assert "--lr: the checkpoint has 0.001, given was 0.5" in told
    assert "--loss: the checkpoint has 'ms', given was 'triplet'" in told
    assert "--mining: the checkpoint has 'ms', given was 'none'" in told
    assert run(monkeypatch, "train", *given, "--steps", "4") == program.REFUSED
    assert "--output: expected a folder without a checkpoint" in capsys.readouterr().err
    assert run(monkeypatch, "train", *given, "--resume", "--steps", "1") == program.REFUSED
    assert "--steps: expected at least the 2" in capsys.readouterr().err
    assert (tmp_path / checkpoint.NAME).read_bytes() == before


def test_options_that_were_left_to_the_trainer_are_compared_as_it_chose(
    tmp_path, tiny, monkeypatch, capsys
):
    """MS mining is that of the loss ms, and a machine without a GPU is one with --device cpu."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given = ["--dataset", "cub", "--root", tiny["cub"], *SMALL[:-2], "--ks", "1"]
    given += ["--output", tmp_path]
    assert run(monkeypatch, "train", *given, "--steps", "1") == 0
    same = ["--steps", "2", "--resume", "--mining", "ms", "--device", "cpu", "--loss", "ms"]
    assert run(monkeypatch, "train", *given, *same) == 0
    other = ["--steps", "2", "--resume", "--mining", "none"]
    assert run(monkeypatch, "train", *given, *other) == program.REFUSED
    assert "--mining: the checkpoint has 'ms', given was 'none'" in capsys.readouterr().err


def test_a_checkpoint_of_other_images_names_both_counts(tmp_path, tiny, monkeypatch, capsys):
    """The same images may lie elsewhere; others, or of other classes, are no longer the run's."""
    given = ["--dataset", "cub", *SMALL, "--ks", "1", "--output", tmp_path / "run"]
    assert run(monkeypatch, "train", *given, "--root", tiny["cub"], "--steps", "1") == 0
    goes_on = ["train", *given, "--steps", "2", "--resume", "--root"]
    scored = ["evaluate", "--device", "cpu", "--output", tmp_path / "run", "--root"]
    roots = {name: tmp_path / name for name in ("moved", "fewer", "others")}
    for root in roots.values():
        spoil(root, "cub")
    for name, change in (("fewer", lambda rows: rows[:-1]), ("others", swapped)):
        path = roots[name] / "CUB_200_2011" / "images.txt"
        path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")
    told = {
        "fewer": "query: the checkpoint has 12 images, given were 11\n",
        "others": "train: the checkpoint has 12 images, given were 12 of other names or classes\n",
    }
    capsys.readouterr()
    for arguments in (goes_on, scored):
        for name, message in told.items():
            assert run(monkeypatch, *arguments, roots[name]) == program.REFUSED
            found = capsys.readouterr().err
            assert "--root: expected the images that" in found and message in found
            assert found.count("the checkpoint has") == 1 + (name == "others")
        assert run(monkeypatch, *arguments, roots["moved"] / "CUB_200_2011") == 0


def swapped(rows):
    """The first image and the last one take each other's class."""
    (one, first), (other, last) = rows[0].split(), rows[-1].split()
    return [f"{one} {last}", *rows[1:-1], f"{other} {first}"]


def test_a_checkpoint_that_is_none(tmp_path):
    with pytest.raises(Refusal, match="expected a checkpoint, got no file"):
        checkpoint.load(tmp_path / "checkpoint.pt")
    (tmp_path / "checkpoint.pt").write_bytes(b"PK of another kind")
    with pytest.raises(Refusal, match="a file that torch cannot load"):
        checkpoint.load(tmp_path / "checkpoint.pt")
    torch.save({"step": 3}, tmp_path / "checkpoint.pt")
    with pytest.raises(Refusal, match="one without chance, criterion, images, losses, model"):
        checkpoint.load(tmp_path / "checkpoint.pt")


def test_a_checkpoint_of_another_network(tmp_path, tiny, monkeypatch, capsys):
    given = ["--dataset", "cub", "--root", tiny["cub"], *SMALL, "--ks", "1", "--output", tmp_path]
    assert run(monkeypatch, "train", *given, "--steps", "1") == 0
    path = tmp_path / checkpoint.NAME
    state = checkpoint.load(path)
    for name in ("model", "optimizer"):
        torch.save({**state, name: {}}, path)
        assert run(monkeypatch, "train", *given, "--steps", "2", "--resume") == program.REFUSED
        assert f"expected a {name} that fits this trainer's" in capsys.readouterr().err
    torch.save({**state, "model": {}}, path)
    assert run(monkeypatch, "evaluate", "--output", tmp_path) == program.REFUSED
    assert "expected a model that fits" in capsys.readouterr().err
    torch.save({name: part for name, part in state.items() if name != "losses"}, path)
    assert run(monkeypatch, "evaluate", "--output", tmp_path) == program.REFUSED
    assert "one without losses" in capsys.readouterr().err
    torch.save({**state, "options": {"loss": "ms"}}, path)
    assert run(monkeypatch, "evaluate", "--output", tmp_path) == program.REFUSED
    assert "options name no dataset" in capsys.readouterr().err


def test_images_whose_white_is_not_known_and_bombs(tmp_path, monkeypatch):
    deep = np.full((4, 4), 40000)
    for kind, name in ((np.uint16, "a.png"), (np.int32, "b.tif"), (np.float32, "c.tif")):
        Image.fromarray(deep.astype(kind)).save(tmp_path / name)
        with pytest.raises(Refusal, match=f"{name}: expected an image of 8 bits a channel, got"):
            Files(tmp_path, [tmp_path / name], [0]).read(0)
    tiny_image(tmp_path / "large.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(Refusal, match="large.png: expected an image, got .* decompression bomb"):
        Files(tmp_path, [tmp_path / "large.png"], [0]).read(0)


def test_more_processes_than_images_a_batch(tmp_path, tiny):
    processes = Processes("cpu")
    processes.world = 10
    options = dry_options("cub", tmp_path, classes=3, images=3)
    with pytest.raises(Refusal, match="as many images as the 10 processes .*, got 3 x 3; start"):
        Run(options, LAYOUTS["cub"](tiny["cub"]), processes)


def test_a_save_that_fails_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save(path, {"step": 1})

    def fails(_, where):
        with open(where, "wb") as file:
            file.write(b"half")
        raise OSError("no space left on device")

    monkeypatch.setattr(torch, "save", fails)
    with pytest.raises(OSError):
        checkpoint.save(path, {"step": 2})
    assert torch.load(path)["step"] == 1


WRONG = [
    (["--classes", "9"], "--classes: expected at most the 3 classes that have two images to train "
     "with, got 9"),
    (["--ks", "1,12"], "--ks: expected numbers from 1 to 11, as many as a query can find in cub, "
     "got 12"),
    (["--backbone", "resnet50"], "--backbone: expected 'small', 'timm/NAME'"),
    (["--backbone", "timm/resnet50"], "pip install timm|expected a model of timm"),
    (["--backbone", "nowhere:make"], "expected a function without arguments at 'nowhere:make'"),
    (["--loss-option", "gamma=3"], "--loss-option: expected options of ms, which are alpha, beta"),
    (["--loss-option", "beta"], "--loss-option: expected NAME=NUMBER, such as beta=40, got 'beta'"),
    (["--loss-option", "beta=-1"], "--loss-option: beta: expected a finite number above 0, got -1"),
    (["--mining-option", "k=2"], "--mining-option: expected options of ms, which are epsilon"),
    (["--memory", "8", "--loss", "histogram"], "memory"),
]  # fmt: skip


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments(tmp_path, tiny, monkeypatch, capsys, arguments, message):
    given = ["--dataset", "cub", "--root", tiny["cub"], *SMALL, "--output", tmp_path / "run"]
    assert run(monkeypatch, "train", *given, *arguments) == program.REFUSED
    assert re.search(message, capsys.readouterr().err)
    assert not (tmp_path / "run").exists()


def test_arguments_that_no_number_is(monkeypatch, capsys):
    for option, value in (("--lr", "0"), ("--images", "1"), ("--steps", "x"), ("--ks", "1,,2")):
        assert run(monkeypatch, "train", "--dataset", "cub", option, value) == 2
        assert f"argument {option}: expected" in capsys.readouterr().err
    assert run(monkeypatch, "train") == program.REFUSED
    assert "--dataset: expected one of cub, cars" in capsys.readouterr().err
    assert run(monkeypatch, "train", "--dataset", "cub") == program.REFUSED
    assert "--root: expected the folder of cub, got none" in capsys.readouterr().err


def test_tensorboard_that_is_missing(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    given = ["--dataset", "cub", "--root", "nowhere", "--tensorboard", "--output", tmp_path]
    assert run(monkeypatch, "train", *given) == program.REFUSED
    assert "pip install tensorboard" in capsys.readouterr().err


def test_a_class_with_one_image_is_left_out_and_told(tmp_path, monkeypatch, capsys, tiny):
    root = tmp_path / "cub"
    spoil(root, "cub")
    folder = root / "CUB_200_2011"
    rows = [row for row in (folder / "images.txt").read_text().splitlines()]
    kept = [row for row in rows if "Bird_1_" not in row or "Bird_1_0" in row]
    kept = [row for row in kept if "Bird_6_" not in row or "Bird_6_0" in row]
    (folder / "images.txt").write_text("\n".join(kept) + "\n")
    given = ["--dataset", "cub", "--root", root, *SMALL, "--steps", "1", "--output", tmp_path / "r"]
    assert run(monkeypatch, "train", *given, "--classes", "2") == 0
    shown = capsys.readouterr().out
    assert "9 images of 3 classes, 1 of a single image left out" in shown
    assert "Percent of 8 queries; 1 more have nobody to find, and are left out." in shown
