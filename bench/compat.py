"""python -m bench compat [quick]: a script of pytorch-metric-learning as it is, and with its import
line changed, in time and peak memory of a training step. quick: the small sizes alone.

Each set-up is written once and given both libraries' modules. Losses and gradients are compared
before they are timed, and no step may fall back to the library's own.
"""

import functools
import json
import sys
import warnings
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

from torch import Tensor
from tqdm import tqdm

from bench.baselines import PEER, Loss
from bench.cases import make_batch
from bench.keep import keep
from bench.memory import printed
from bench.timing import rounds_for
from bench.versus import refuse_unequal, step_of, timed
from ms_kernels.tools.step_cost import peak_of

MOST_SECONDS = 30  # of the peer's turns in one case
Script = Callable[[ModuleType, ModuleType], Loss]


class SetUp(NamedTuple):
    script: Script
    sizes: tuple[tuple[int, int], ...] = ((256, 128), (1024, 128))


def with_miner(loss: str, miner: str, **options: Any) -> Script:
    """A loss of the pairs or triplets of a miner, as most examples have it."""

    def script(losses: ModuleType, miners: ModuleType) -> Loss:
        criterion, mine = getattr(losses, loss)(**options), getattr(miners, miner)()
        return lambda x, y: criterion(x, y, mine(x, y))

    return script


def alone(loss: str) -> Script:
    return lambda losses, miners: getattr(losses, loss)()


def places(losses: ModuleType, miners: ModuleType) -> Loss:
    """As place recognition trains: deep rows, base 0."""
    criterion, mine = losses.MultiSimilarityLoss(1.0, 50, 0.0), miners.MultiSimilarityMiner(0.1)
    return lambda x, y: criterion(x, y, mine(x, y))


def memory(losses: ModuleType, miners: ModuleType) -> Loss:
    """A batch against 4,096 rows of the past."""
    criterion = losses.CrossBatchMemory(
        losses.MultiSimilarityLoss(), 128, memory_size=4096, miner=miners.MultiSimilarityMiner()
    )
    past, labels, _ = make_batch(4096, 128, "mid")
    for rows, kinds in zip(past.split(256), labels.split(256), strict=True):
        criterion.add_to_memory(rows, kinds, len(rows))

    def step(x: Tensor, y: Tensor) -> Tensor:
        criterion.to(x.dtype)
        found: Tensor = criterion(x, y)
        return found

    return step


SETUPS = {
    "MultiSimilarityLoss, MultiSimilarityMiner": SetUp(
        with_miner("MultiSimilarityLoss", "MultiSimilarityMiner")
    ),
    "TripletMarginLoss, TripletMarginMiner": SetUp(
        with_miner("TripletMarginLoss", "TripletMarginMiner")
    ),
    "TripletMarginLoss, BatchHardMiner": SetUp(with_miner("TripletMarginLoss", "BatchHardMiner")),
    "ContrastiveLoss": SetUp(alone("ContrastiveLoss")),
    "NTXentLoss": SetUp(alone("NTXentLoss"), ((256, 128), (512, 128))),
    "SupConLoss": SetUp(alone("SupConLoss")),
    "CrossBatchMemory of MultiSimilarityLoss": SetUp(memory, ((64, 128), (256, 128))),
    "place recognition": SetUp(places, ((240, 4096),)),
}


@functools.cache
def libraries() -> dict[str, tuple[ModuleType, ModuleType]]:
    """Losses and miners, by the import line."""
    from pytorch_metric_learning import losses as their_losses
    from pytorch_metric_learning import miners as their_miners

    from ms_kernels.compat.pytorch_metric_learning import losses, miners

    return {"ours": (losses, miners), PEER: (their_losses, their_miners)}


def check(name: str) -> None:
    """Refuses what is not the same, and what falls back."""
    set_up = SETUPS[name]
    x, y, _ = make_batch(128, set_up.sizes[0][1], "mid")
    steps = {who: set_up.script(*modules) for who, modules in libraries().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # which is how a loss says that it falls back
        refuse_unequal(name, *(step_of(step, x, y) for step in steps.values()))


def times(name: str, n: int, d: int) -> dict[str, Any]:
    """Medians of interleaved rounds."""
    x, y, _ = make_batch(n, d, "mid")
    ours, peer = (SETUPS[name].script(*modules) for modules in libraries().values())
    return timed(x, y, ours, {PEER: peer}, rounds_for(n), MOST_SECONDS)


def print_peak(name: str, candidate: str, n: int, d: int) -> None:
    step = SETUPS[name].script(*libraries()[candidate])
    x, y, _ = make_batch(n, d, "mid")
    # Small, or what the heap keeps of it would hide as much of the step that is measured.
    step(x[:64].clone().requires_grad_(), y[:64]).backward()
    leaf = x.clone().requires_grad_()
    print(json.dumps(peak_of(lambda x: step(x, y[: len(x)]).backward(), leaf)))


def measure(quick: bool) -> list[dict[str, Any]]:
    rows = []
    jobs = [(k, *size) for k, s in SETUPS.items() for size in (s.sizes[:1] if quick else s.sizes)]
    for name, n, d in (progress := tqdm(jobs, desc="compat", unit="case")):
        progress.set_postfix_str(f"{name} {n}")
        check(name)
        peaks = {who: printed("bench.compat", name, who, n, d) for who in libraries()}
        rows.append({"set_up": name, "n": n, "d": d, "bytes": peaks, "times": times(name, n, d)})
    return rows


def run(machine: dict[str, object], quick: bool) -> None:
    from bench import compat_report

    keep("compat", machine, quick, lambda: {"compat": measure(quick)}, compat_report.table)


def parse(arguments: list[str]) -> tuple[str, str, int, int]:
    """Set-up, candidate, N and D of a peak; exits with what was wanted."""
    if len(arguments) != 4 or arguments[0] not in SETUPS or arguments[1] not in ("ours", PEER):
        known = "; ".join(SETUPS)
        sys.exit(
            f"bench.compat: expected a set-up of {known}, 'ours' or {PEER!r}, N and D, whose peak "
            f"memory is printed, got {' '.join(arguments) or 'nothing'}; `python -m bench compat` "
            "measures all of them"
        )
    return arguments[0], arguments[1], int(arguments[2]), int(arguments[3])


if __name__ == "__main__":
    print_peak(*parse(sys.argv[1:]))
