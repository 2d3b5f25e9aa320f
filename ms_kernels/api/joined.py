"""Whether the loss of an anchor follows from what blocks of its candidates add up to."""

from ms_kernels.api.memory import CrossBatchMemory
from ms_kernels.api.modules import PairLoss
from ms_kernels.backends.dispatch import names_of, takes_blocks
from ms_kernels.rules.made import learned_spec_of
from ms_kernels.rules.weighting import Triplet


def check_joined(loss: PairLoss | CrossBatchMemory) -> None:
    """Of a ring: whether an anchor's loss follows from what blocks of candidates add up to."""
    if isinstance(loss, CrossBatchMemory):
        raise ValueError(
            "schedule: expected 'gather' with a CrossBatchMemory, which holds the rows of all on "
            "every process, got 'ring'; use schedule='gather'"
        )
    # Of options that learn the values are read in each call, which chooses by them.
    spec = learned_spec_of(loss.rule, loss.mining, loss.shared)
    if spec is None or isinstance(spec.weighting, Triplet):
        raise ValueError(
            "schedule: 'ring' expected rules of this package, and no "
            "triplet loss, which compares pairs with pairs, got "
            f"{names_of(loss.weighting, loss.mining)}; use schedule='gather'"
        )
    name = loss.options["backend"]
    if name != "auto" and not takes_blocks(name, spec):
        raise ValueError(
            f"schedule: 'ring' expected a backend that takes blocks of candidates with "
            f"{spec.names}, got {name!r}; use backend='auto' or schedule='gather'"
        )
