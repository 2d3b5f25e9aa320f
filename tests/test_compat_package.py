"""The package as an import line: what it names, what it needs, and which version it knows."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import pytorch_metric_learning
import torch
from peer_classes import BATCHES, LOSSES, rows
from pytorch_metric_learning import losses as library
from pytorch_metric_learning import miners as library_miners
from pytorch_metric_learning import reducers

import ms_kernels
import ms_kernels.compat.pytorch_metric_learning as package
from ms_kernels.compat.pytorch_metric_learning import distributed, losses, miners


def test_other_modules_are_the_librarys_own():
    from ms_kernels.compat.pytorch_metric_learning import distances, reducers, regularizers

    for module in (distances, reducers, regularizers):
        assert module.__name__.startswith("pytorch_metric_learning.")
    assert package.__version__ == pytorch_metric_learning.__version__
    with pytest.raises(AttributeError, match="no attribute 'distance'"):
        package.distance  # noqa: B018
    assert distributed.all_gather is distributed.theirs.all_gather


def test_losses_are_replaced_by_name():
    names = [name for name, kind in vars(library).items() if isinstance(kind, type)]
    replaced = {kind.__name__ for kind in losses.REPLACED}
    assert replaced == {*LOSSES, "CrossBatchMemory"}
    for name in names:
        kind, their = getattr(losses, name), getattr(library, name)
        assert (kind is not their) == (name in replaced) and issubclass(kind, their)
        assert kind.__name__ == name


# As version 3 is documented: no __version__, no utils.loss_and_miner_utils, other arguments.
VERSION_3 = {
    "pytorch_metric_learning/__init__.py": "",
    "pytorch_metric_learning/losses/__init__.py": "from .supcon_loss import SupConLoss",
    "pytorch_metric_learning/losses/supcon_loss.py": """
class SupConLoss:
    def __call__(self, embeddings, labels=None, *, mat=None):
        return mat, labels
""",
    "pytorch_metric_learning/miners/__init__.py": "class BatchHardMiner: pass",
    "pytorch_metric_learning/distances/__init__.py": "class CosineSimilarity: pass",
    "pytorch_metric_learning/distributed.py": "class DistributedLossWrapper: pass",
    "pytorch_metric_learning-3.0.4.dist-info/METADATA": (
        "Metadata-Version: 2.1\nName: pytorch-metric-learning\nVersion: 3.0.4\n"
    ),
}
SCRIPT = """
import sys, warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    from ms_kernels.compat.pytorch_metric_learning import losses, miners, distributed
    from ms_kernels.compat.pytorch_metric_learning.losses.supcon_loss import SupConLoss
    from ms_kernels.compat.pytorch_metric_learning.distances import CosineSimilarity
    import ms_kernels.compat.pytorch_metric_learning as package
said = [w for w in said if "pytorch-metric-learning" in str(w.message)]
assert len(said) == 1 and said[0].filename == "<string>", said
assert "pytorch-metric-learning 3.0.4 was not tried" in str(said[0].message)
assert package.__version__ == "3.0.4"
import pytorch_metric_learning.distances as d, pytorch_metric_learning.distributed as w
import pytorch_metric_learning.losses as l, pytorch_metric_learning.miners as m
assert (losses, miners, distributed) == (l, m, w) == (
    package.losses, package.miners, package.distributed
)
assert SupConLoss is l.SupConLoss and CosineSimilarity is d.CosineSimilarity
assert losses.SupConLoss()([1], [2], mat=3) == (3, [2])
print("theirs")
"""


def test_another_version_is_left_to_itself(tmp_path):
    """3 has other losses by these names, which take other arguments: every module is its own."""
    for name, text in VERSION_3.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    root = Path(ms_kernels.__file__).parents[1]
    script = f"import sys; sys.path[:0] = [{str(tmp_path)!r}, {str(root)!r}]\n{SCRIPT}"
    run = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert run.stdout == "theirs\n", run.stderr


def test_the_example_of_the_docs():
    text = (Path(ms_kernels.__file__).parents[1] / "docs" / "compat.md").read_text()
    imports, example = re.findall(r"```python\n(.*?)```", text, re.S)
    names = {}
    exec(imports, names)
    assert names["losses"] is losses and names["miners"] is miners
    exec(example, names)
    assert names["loss"].calls == {"kernels": 1} and names["embeddings"].grad.any()


def test_what_the_docs_say_of_the_library():
    """Where it differs, as its present version does."""
    x, y = rows(24), BATCHES["equal"]
    column = reducers.DoNothingReducer()
    for name in ("MultiSimilarityLoss", "CircleLoss", "GeneralizedLiftedStructureLoss"):
        assert getattr(library, name)(reducer=column)(x, y)["loss"]["losses"].shape == (24, 1)
    with pytest.raises(IndexError):
        library.NTXentLoss(reducer=reducers.PerAnchorReducer())(x[:3], y[:3], None, x, y.clone())
    ours = losses.NTXentLoss(reducer=reducers.PerAnchorReducer(), strict=True)
    assert ours(x[:3], y[:3], None, x, y.clone()) > 0
    each = {"reducer": reducers.PerAnchorReducer()}
    with pytest.raises(RuntimeError, match="shape mismatch"):
        library.LiftedStructureLoss(**each)(x, y)
    lifted = losses.LiftedStructureLoss(strict=True, **each)
    of_a_class = losses.LiftedStructureLoss(strict=True)(x, y)  # of equal classes means are alike
    torch.testing.assert_close(lifted(x, y), of_a_class)
    with pytest.raises(IndexError):
        lifted(x[:3], y[:3], None, x, y.clone())
    with pytest.raises(NotImplementedError, match="cdist"):
        library_miners.TripletMarginMiner()(x.bfloat16(), y)
    low, high = rows(8).half(), torch.arange(8) // 2
    saturated = library.NTXentLoss(temperature=0.01)(low, high)
    assert saturated < 0.9 * losses.NTXentLoss(temperature=0.01)(low, high)


def test_flags():
    for name in ("strict", "exact_small_batches"):
        with pytest.raises(TypeError, match=f"{name}: expected True or False, got 1"):
            losses.SupConLoss(**{name: 1})
    with pytest.raises(TypeError, match="unexpected keyword argument 'tempreature'"):
        losses.SupConLoss(tempreature=0.1)
    assert losses.SupConLoss(0.3).temperature == 0.3  # by place, as there
