"""The network of examples/retrieval: frozen normalisation, backbones by name, half precision."""

import importlib
import sys
import types

import pytest
import torch
from torch import nn

pytest.importorskip("PIL")
pytest.importorskip("tqdm")

from retrieval_program import SMALL, run, tiny_roots  # noqa: E402

from examples.retrieval import checkpoint  # noqa: E402
from examples.retrieval.model import Embedder, backbone_of, headless, small  # noqa: E402
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
