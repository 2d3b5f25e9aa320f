"""Where a loss by labels waits for a GPU: operations whose result has a size, or is a number, that
only the device knows."""

import pytest
import torch
from peer_classes import ALONE, BATCHES, LOSSES, ours, rows, step
from torch.utils._python_dispatch import TorchDispatchMode

NAMES = ("_local_scalar_dense", "nonzero", "unique", "masked_select", "is_nonzero", "equal")
# As docs/compat.md says; of `LiftedStructureLoss` one more, a tolist, which no mode sees.
WAITS = {
    "GeneralizedLiftedStructureLoss": ["_local_scalar_dense"],
    "NCALoss": ["nonzero"],
    "NPairsLoss": ["nonzero"],
}
WAITS_WITH_REFERENCES = {**WAITS, "LiftedStructureLoss": ["_local_scalar_dense"]}


class Waits(TorchDispatchMode):
    """Names of the operations that wait."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name, kwargs = func.name().removeprefix("aten::"), kwargs or {}
        self.seen += [known for known in NAMES if name.startswith((known, f"_{known}"))]
        if name == "repeat_interleave.Tensor" and kwargs.get("output_size") is None:
            self.seen.append("repeat_interleave")
        masks = args[1] if name == "index.Tensor" else ()
        if any(index is not None and index.dtype == torch.bool for index in masks):
            self.seen.append("index of a mask")
        return func(*args, **kwargs)


def test_what_waits_is_seen():
    with Waits() as waits:
        x = torch.arange(4)
        x[x > 1], x.nonzero(), x.unique(), bool(x[0]), x.repeat_interleave(x)  # noqa: B018
    assert waits.seen == [
        "index of a mask",
        "nonzero",
        "unique",
        "_local_scalar_dense",
        "repeat_interleave",
    ]


@pytest.mark.parametrize("refs", [False, True], ids=["self", "refs"])
@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_by_labels(name, refs):
    if refs and name in ALONE:
        return
    y = BATCHES["equal"]
    other = (rows(len(y), 1), y.clone()) if refs else (None, None)
    loss = ours(name)
    with Waits() as waits:
        value, _ = step(loss, rows(len(y)), y, *other, dtype=torch.float32)
    assert waits.seen == (WAITS_WITH_REFERENCES if refs else WAITS).get(name, [])
    assert value > 0 and loss.calls == {"kernels": 1}
