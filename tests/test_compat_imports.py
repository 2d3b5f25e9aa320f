"""Any import line of pytorch-metric-learning may be changed: every module of it by every form."""

import importlib
import pkgutil
import subprocess
import sys
from types import ModuleType

import pytest
import pytorch_metric_learning

import ms_kernels.compat.pytorch_metric_learning as package
from ms_kernels.compat.pytorch_metric_learning import distributed, losses, miners

HERE, THEIRS = package.__name__, "pytorch_metric_learning"
REPLACED = {
    kind.__name__: kind for module in (losses, miners, distributed) for kind in module.REPLACED
}


def missing(name):
    """Why a module of the library itself cannot be imported here, if so: it needs another."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        return error.name
    return None


MODULES = [
    info.name.removeprefix(f"{THEIRS}.")
    for info in pkgutil.walk_packages(pytorch_metric_learning.__path__, f"{THEIRS}.")
]


def test_all_modules_are_tried():
    assert len(MODULES) > 60
    assert {"distances", "reducers.avg_non_zero_reducer", "utils.distributed"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_module_by_its_path(name):
    if lacking := missing(f"{THEIRS}.{name}"):
        with pytest.raises(ModuleNotFoundError, match=lacking):
            importlib.import_module(f"{HERE}.{name}")
        return
    mine, their = (importlib.import_module(f"{root}.{name}") for root in (HERE, THEIRS))
    for key, value in vars(their).items():
        if key.startswith("__") or isinstance(value, ModuleType):
            continue
        got = getattr(mine, key)
        if isinstance(value, type) and value.__module__.startswith(THEIRS):
            own = value.__module__.startswith(f"{THEIRS}.{name}")  # and not imported for its use
            assert got is (REPLACED.get(value.__name__, value) if own else value), key
        else:
            assert got is value or got == value, key
    parent, _, last = f"{HERE}.{name}".rpartition(".")
    scope = {}
    exec(f"from {parent} import {last}\nimport {HERE}.{name} as again", scope)
    assert scope[last] is mine is scope["again"] is sys.modules[f"{HERE}.{name}"]
    assert importlib.import_module(f"{THEIRS}.{name}") is their  # which stays what it is
    assert their.__spec__.name == f"{THEIRS}.{name}"


LINES = [
    "from {root} import losses, miners, distances, reducers, regularizers, samplers, testers",
    "from {root}.distances import CosineSimilarity, LpDistance",
    "from {root}.reducers import AvgNonZeroReducer",
    "from {root}.losses import NTXentLoss, ProxyAnchorLoss",
    "from {root}.losses.ntxent_loss import NTXentLoss",
    "from {root}.miners import TripletMarginMiner, AngularMiner",
    "from {root}.miners.triplet_margin_miner import TripletMarginMiner",
    "from {root}.utils import common_functions, distributed",
    "from {root}.utils.inference import InferenceModel, MatchFinder",
    "from {root}.utils.accuracy_calculator import AccuracyCalculator",
    "from {root}.utils.distributed import DistributedLossWrapper, all_gather",
    "import {root}.losses.contrastive_loss as found",
    "import {root}.utils; found = {root}.utils.distributed.DistributedMinerWrapper",
    "import {root}; found = {root}.utils.common_functions.LOGGER",
    "import {root}; found = {root}.losses.triplet_margin_loss.TripletMarginLoss",
]


EACH_ALONE = """
import os, sys, ms_kernels
asked = "ms_kernels.compat", "pytorch_metric_learning"
print("loaded unasked:", [name for name in sys.modules if name in asked], flush=True)
import pytorch_metric_learning.losses
for code in sys.argv[1:]:
    child = os.fork()
    if child == 0:
        try:
            exec(code, {"sys": sys})
        except BaseException as error:
            print(f"{type(error).__name__}: {error} in {code!r}", flush=True)
        os._exit(0)
    os.waitpid(child, 0)
print("all tried")
"""
WITHOUT_THE_LIBRARY = f"sys.modules['{THEIRS}'] = None\nimport {HERE}"


def test_lines_of_a_fresh_process():
    """Each in one of its own, where nothing has imported what it names."""
    codes = []
    for line in LINES:
        names = [n for n in REPLACED if n in line and f".{n}" not in line]
        wanted = (f"\nassert {n}.__module__.startswith('ms_kernels.'), {n}" for n in names)
        codes.append(line.format(root=HERE) + "".join(wanted))
    command = [sys.executable, "-c", EACH_ALONE, *codes, WITHOUT_THE_LIBRARY]
    run = subprocess.run(command, capture_output=True, text=True)
    first, *refused, last = run.stdout.splitlines()
    assert (first, last) == ("loaded unasked: []", "all tried"), run.stderr
    assert len(refused) == 1, refused
    assert refused[0].startswith(f"ImportError: {HERE}: expected the package pytorch-metric-le")
    assert "pip install pytorch-metric-learning" in refused[0]


def test_the_state_of_a_module_is_one():
    """What a script sets is what the library reads."""
    mine = importlib.import_module(f"{HERE}.utils.common_functions")
    from pytorch_metric_learning.utils import common_functions as their

    assert mine is their
    assert package.utils.common_functions is their
    assert package.utils.distributed is distributed


def test_what_there_is_not():
    with pytest.raises(ModuleNotFoundError, match=rf"No module named '{HERE}.distance'"):
        importlib.import_module(f"{HERE}.distance")
    with pytest.raises(ImportError, match="cannot import name 'CosineDistance'"):
        exec(f"from {HERE}.distances import CosineDistance", {})
    for module in (package, package.utils, losses, miners):
        with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
            module.nothing  # noqa: B018
