"""The network of examples/retrieval: frozen normalisation, backbones by name, half precision."""

import importlib
import sys
import types

import pytest
import torch
from torch import nn

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")

from retrieval_program import SMALL, run, tiny_roots  # noqa: E402

from examples.retrieval import checkpoint  # noqa: E402
from examples.retrieval.images import GREY, IMAGENET, to_tensor  # noqa: E402
from examples.retrieval.model import (  # noqa: E402
    Embedder,
    backbone_of,
    headless,
    normalisation_of,
    small,
)
from examples.retrieval.refusal import Refusal  # noqa: E402


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_normalisation_keeps_its_statistics_and_learns_its_scale(frozen):
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(4)
    model = Embedder(nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.Flatten()), 4 * 36, 5, frozen)
    before = norm.running_mean.clone()
    model.train()
    rows = model(torch.randn(2, 3, 8, 8))
    rows.sum().backward()
    assert torch.equal(norm.running_mean, before) == frozen
    assert norm.weight.grad.any()
    torch.testing.assert_close(rows.norm(dim=1), torch.ones(2))
    assert model.eval().training is False


def test_images_of_a_batch_do_not_know_of_each_other():
    torch.manual_seed(0)
    net, x = small(1), torch.randn(3, 1, 32, 32)
    torch.testing.assert_close(net(x)[1:2], net(x[1:2]))
    assert backbone_of("small", 3, 17, False)[1] == 512


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.fc = nn.Conv2d(3, 6, 3), nn.Linear(6, 10)
        self.AuxLogits, self.aux_logits = nn.Linear(6, 10), True

    def forward(self, x):
        features = self.body(x).mean((2, 3))
        found = self.fc(features)
        beside = self.training and self.aux_logits
        return (found, self.AuxLogits(features)) if beside else found


def test_a_classifier_loses_its_head_and_what_it_answers_in_training(monkeypatch):
    model = headless(Classifier()).train()
    assert model(torch.randn(2, 3, 8, 8)).shape == (2, 6)
    monkeypatch.setitem(sys.modules, "own_networks", types.SimpleNamespace(make=Classifier))
    backbone, features = backbone_of("own_networks:make", 3, 8, True)
    assert features == 6 and isinstance(backbone, Classifier)


def fake_timm(create):
    return types.SimpleNamespace(
        is_model=lambda name: name == "resnet18",
        list_models=lambda: ["resnet18", "vit_tiny"],
        create_model=create,
    )


def test_timm_by_name(monkeypatch):
    asked = {}

    def create(name, **options):
        asked.update(options, name=name)
        return headless(Classifier())

    monkeypatch.setitem(sys.modules, "timm", fake_timm(create))
    assert backbone_of("timm/resnet18", 3, 8, False)[1] == 6
    assert asked == {"name": "resnet18", "num_classes": 0, "in_chans": 3, "pretrained": False}
    with pytest.raises(Refusal, match="expected a model of timm, got 'resnet1'; it has resnet18"):
        backbone_of("timm/resnet1", 3, 8, False)


def test_weights_that_cannot_be_fetched(monkeypatch):
    def create(name, **options):
        raise OSError("no route to host\nand more")

    monkeypatch.setitem(sys.modules, "timm", fake_timm(create))
    with pytest.raises(Refusal, match="got OSError: no route to host; .* by --no-pretrained"):
        backbone_of("timm/resnet18", 3, 8, True)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (ImportError("none"), "pip install torchvision, or take --backbone small"),
        (RuntimeError("operator torchvision::nms"), "expected a torchvision that fits torch"),
    ],
)
def test_a_library_that_is_missing_or_does_not_fit(monkeypatch, error, message):
    def fails(_):
        raise error

    monkeypatch.setattr(importlib, "import_module", fails)
    with pytest.raises(Refusal, match=message):
        backbone_of("torchvision/resnet50", 3, 32, False)


def test_images_that_a_backbone_does_not_take(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_networks", types.SimpleNamespace(make=Classifier))
    with pytest.raises(Refusal, match="expected own_networks:make to take images of 1 x 8 x 8"):
        backbone_of("own_networks:make", 1, 8, False)


def with_pixels(**said):
    return types.SimpleNamespace(**said)


def test_a_backbone_says_what_pixels_it_takes():
    assert normalisation_of(small(3), 3) == IMAGENET and normalisation_of(small(1), 1) == GREY
    half = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.25)}
    assert normalisation_of(with_pixels(pretrained_cfg=half), 3)[:2] == (half["mean"], half["std"])
    caffe = dict(mean=[104, 117, 128], std=[1, 1, 1], input_space="BGR", input_range=[0, 255])
    found = normalisation_of(with_pixels(**caffe), 3)
    assert str(found) == "BGR from 0 to 255, less 104, 117, 128, over 1, 1, 1"
    red = Image.new("RGB", (2, 2), (200, 30, 128))
    assert to_tensor(red, found)[:, 0, 0].tolist() == [24, -87, 72]
    buffers = {name: torch.tensor(half[name]).view(3, 1, 1) for name in half}
    assert normalisation_of(with_pixels(**buffers), 3)[:2] == (half["mean"], half["std"])
    wrong = [{"mean": [1, 2, 3]}, {**half, "std": (0, 1, 1)}, {**half, "input_space": "YUV"}]
    wrong += [{**half, "input_range": [-1, 1]}, {**half, "mean": (0.5,)}, {**half, "mean": "x"}]
    for said in wrong:
        with pytest.raises(Refusal, match="--backbone: expected mean and std of 3 numbers"):
            normalisation_of(with_pixels(**said), 3)


def test_channels_are_red_green_and_blue():
    x = to_tensor(Image.new("RGB", (2, 2), (255, 51, 0)), IMAGENET)[:, 1, 1]
    want = [(1 - 0.485) / 0.229, (0.2 - 0.456) / 0.224, -0.406 / 0.225]
    torch.testing.assert_close(x, torch.tensor(want))
    grey = to_tensor(Image.new("L", (2, 2), 51), GREY)
    assert grey.shape == (1, 2, 2)
    torch.testing.assert_close(grey, torch.full((1, 2, 2), -0.6))


def test_pixels_of_a_backbone_reach_training_and_test(
    monkeypatch, tmp_path, tmp_path_factory, capsys
):
    caffe = dict(mean=[104, 117, 128], std=[1, 1, 1], input_space="BGR", input_range=[0, 255])
    seen = []

    class Bgr(Classifier):
        def forward(self, x):
            seen.append((self.training, float(x.std())))
            return super().forward(x)

    def make():
        made = Bgr()
        for name, value in caffe.items():
            setattr(made, name, value)
        return made

    monkeypatch.setitem(sys.modules, "own_networks", types.SimpleNamespace(make=make))
    root = tiny_roots(tmp_path_factory)["cub"]
    given = ["--dataset", "cub", "--root", root, *SMALL, "--steps", "2", "--ks", "1"]
    given += ["--backbone", "own_networks:make", "--output", tmp_path]
    assert run(monkeypatch, "train", *given) == 0
    assert "pixels are BGR from 0 to 255, less 104, 117, 128" in capsys.readouterr().out
    assert {training for training, _ in seen} == {False, True}
    assert min(deviation for _, deviation in seen[1:]) > 10  # the first is of zeros


class Writer:
    written = []

    def __init__(self, folder):
        self.folder = folder

    def add_scalar(self, name, value, step):
        self.written.append((name, step))

    def close(self):
        self.written.append(("closed", None))


def test_half_precision_and_tensorboard(tmp_path, monkeypatch, capsys, tmp_path_factory):
    """The network in bfloat16, weights and loss in float32; losses and scores are written."""
    board = types.ModuleType("torch.utils.tensorboard")
    board.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", board)
    monkeypatch.setattr(torch.utils, "tensorboard", board, raising=False)
    monkeypatch.setattr(Writer, "written", [])
    root = tiny_roots(tmp_path_factory)["cub"]
    given = ["--dataset", "cub", "--root", root, *SMALL, "--steps", "2", "--ks", "1", "--amp"]
    given += ["--tensorboard", "--evaluate-every", "2", "--output", tmp_path]
    assert run(monkeypatch, "train", *given) == 0
    assert Writer.written[0] == ("loss", 2) and ("Recall@1", 2) in Writer.written
    assert Writer.written[-1] == ("closed", None)
    state = checkpoint.load(tmp_path / checkpoint.NAME)
    assert {value.dtype for value in state["model"].values()} == {torch.float32}
    assert "step 2: Recall@1" in capsys.readouterr().out
