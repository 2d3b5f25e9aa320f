"""What tests of examples/retrieval share: tiny data sets, the command line in this process."""

import multiprocessing
import os
import signal
import sys
from pathlib import Path

import torch
from PIL import Image

from examples.retrieval import __main__ as program
from examples.retrieval.dry_run import TINY

ROOT = Path(__file__).parent.parent
MODULE = ["-m", "examples.retrieval"]
LAUNCHER = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
SMALL = ["--classes", "3", "--images", "3", "--size", "16", "--dim", "8", "--device", "cpu"]


def run(monkeypatch, *arguments):
    """Of a command line, in this process; its exit status."""
    monkeypatch.setattr(sys, "argv", ["retrieval", *map(str, arguments)])
    try:
        program.main()
    except SystemExit as ended:
        return ended.code
    return 0


def tiny_roots(factory):
    """A tiny data set in each layout, to be read only."""
    roots = {name: factory.mktemp(name) for name in TINY}
    for name, root in roots.items():
        TINY[name](root)
    return roots


def spoil(root, name):
    """A tiny data set of its own, for the test to spoil."""
    TINY[name](root)
    return root


def tiny_image(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), (9, 80, 200)).save(path)


def equal(one, other):
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(one[k], other[k]) for k in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(equal, one, other))
    return one == other


class Signalled:
    """Images whose worker gets the signals that a terminal or a batch system sends to a group."""

    def __init__(self, images):
        self.images, self.labels = images, images.labels

    def read(self, index):
        if multiprocessing.parent_process() is not None:
            for number in (signal.SIGINT, signal.SIGTERM):
                os.kill(os.getpid(), number)
        return self.images.read(index)

    def name(self, index):
        return self.images.name(index)

    def key(self, index):
        return self.images.key(index)


# Dropout in the backbone draws from torch's own generator, which must go on, too.
def with_dropout():
    layers = [torch.nn.Conv2d(3, 4, 3, stride=2), torch.nn.BatchNorm2d(4), torch.nn.Dropout(0.5)]
    return torch.nn.Sequential(*layers, torch.nn.Flatten())
