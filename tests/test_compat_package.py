"""The package as an import line: what it names, what it needs, and which version it knows."""

import re
from pathlib import Path

import pytest
import pytorch_metric_learning
import torch
from peer_classes import BATCHES, LOSSES, miner_pair, rows
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


def test_another_version_is_left_to_itself(monkeypatch):
    """3 has other losses by these names: nothing but the names is ours then."""
    monkeypatch.setattr(pytorch_metric_learning, "__version__", "3.0.4")
    x, y = rows(24), BATCHES["equal"]
    for name in LOSSES:
        loss = getattr(losses, name)()
        with pytest.warns(UserWarning, match=f"{name}: pytorch-metric-learning 3.0.4, of which"):
            found = loss(x, y)
        assert torch.equal(found, getattr(library, name)()(x, y)) and loss.calls == {"fallback": 1}
    for name in ("multi_similarity", "pair_margin", "batch_hard", "triplet_margin"):
        mine, their = miner_pair(name)
        with pytest.warns(UserWarning, match="3.0.4"):
            found = mine(x, y)
        assert type(found) is tuple and all(map(torch.equal, found, their(x, y)))
    with pytest.raises(ValueError, match="3.0.4"):
        losses.SupConLoss(strict=True)(x, y)
    memory = losses.CrossBatchMemory(library.SupConLoss(), 6, miner=miners.HDCMiner())
    assert memory(x, y) > 0


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
