"""python -m bench family [quick]: every member against pytorch-metric-learning's class, in time and
peak memory of a training step. quick: N = 512 alone.

Settings are those that make both losses equal, and they are compared before they are timed.
"""

import functools
import json
import sys
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

import ms_kernels
from bench.baselines import PEER, Loss, has_peer
from bench.keep import keep
from bench.memory import printed
from bench.timing import rounds_for
from bench.versus import refuse_unequal, step_of, timed
from ms_kernels.tools.command_line import check_count
from ms_kernels.tools.step_cost import peak_of

SIZES = (512, 2048, 8192)
DEPTH = 128
PER_CLASS = 4
MOST_SECONDS = 60  # of the peer's turns in one case
TOO_LARGE = "more than 16 GiB: it stores positive x negative pairs of the batch"
TOO_MANY = "more than 16 GiB and two minutes: it sorts all triplets"


class Member(NamedTuple):
    loss: ms_kernels.PairLoss | ms_kernels.MultiSimilarityLoss
    peer: Loss | None = None
    most: int = SIZES[-1]  # rows; the peer is left out above
    why: str = ""  # it is left out
    by_pairs: bool = False  # of the first sample of each class against the second alone
    within: float = 1e-6  # a part of the greatest number, of the peer's loss and gradient

    def on(self, backend: str) -> Loss:
        """Ours, on one backend; ValueError if that does not know the rules."""
        loss = self.loss
        if isinstance(loss, ms_kernels.MultiSimilarityLoss):
            return ms_kernels.MultiSimilarityLoss(backend=backend)
        options = {**loss.options, "backend": backend}
        chosen = ms_kernels.PairLoss(loss.weighting, loss.mining, **options)
        return _first_pairs(chosen) if self.by_pairs else chosen

    @property
    def ours(self) -> Loss:
        return self.on("auto")


@functools.cache
def members() -> dict[str, Member]:
    """Ours alone where pytorch-metric-learning is not installed."""
    k = ms_kernels
    chosen = {
        "Contrastive": {"reduction": "sum"},
        "Triplet": {"reduction": "sum"},
        "NPair": {"normalize": False},
        "NTXent": {"temperature": 0.07},
        "SupCon": {"temperature": 0.1},
        "NCA": {"temperature": 0.5},
    }
    names = ["MultiSimilarity", *(name.removesuffix("Loss") for name in k.family.__all__)]
    losses = {name: getattr(k, f"{name}Loss")(**chosen.get(name, {})) for name in names}
    peers = _peers() if has_peer() else {}
    left_out = {"NTXent": (512, TOO_LARGE), "Histogram": (2048, TOO_MANY)}
    found = {
        name: Member(loss, peers.get(name), *left_out.get(name, (SIZES[-1], "")), name == "NPair")
        for name, loss in losses.items()
    }
    # The peer's nodes are float32 whatever the rows are.
    found["Histogram"] = found["Histogram"]._replace(within=1e-5)
    return found


def _peers() -> dict[str, Loss]:
    from pytorch_metric_learning import losses, reducers
    from pytorch_metric_learning.distances import CosineSimilarity, DotProductSimilarity
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    mean, total = reducers.MeanReducer(), reducers.SumReducer()
    cosine, raw = CosineSimilarity(), DotProductSimilarity(normalize_embeddings=False)
    miner, mined = MultiSimilarityMiner(0.1), losses.MultiSimilarityLoss(2, 50, 0.5)
    return {
        "MultiSimilarity": lambda x, y: mined(x, y, miner(x, y)),
        "Contrastive": losses.ContrastiveLoss(1.0, 0.5, distance=cosine, reducer=total),
        "LiftedStructure": losses.GeneralizedLiftedStructureLoss(0.0, 1.0, distance=cosine),
        "Triplet": losses.TripletMarginLoss(0.1, distance=cosine, reducer=total),
        "NPair": losses.NPairsLoss(distance=raw),
        "NTXent": losses.NTXentLoss(0.07),
        "SupCon": losses.SupConLoss(0.1, reducer=mean),
        "NCA": losses.NCALoss(softmax_scale=1),
        "Circle": losses.CircleLoss(0.4, 80, reducer=mean),
        "Histogram": _quiet(losses.HistogramLoss(100)),
    }


def _first_pairs(loss: Callable[..., Tensor]) -> Loss:
    """Of the first sample of each class against the second: the peer takes no others."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        q = len(x) // PER_CLASS
        return loss(x[:q], y[:q], x[q : 2 * q], y[q : 2 * q])

    return run


def _quiet(loss: Loss) -> Loss:
    """Without torch's warning of an index that is a list."""

    def run(x: Tensor, y: Tensor) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return loss(x, y)

    return run


def make_batch(n: int) -> tuple[Tensor, Tensor]:
    """Unit rows around the centre of their class, whose similarity to each other is about 1/2."""
    generator = torch.Generator().manual_seed(n)
    classes = n // PER_CLASS
    y = torch.arange(classes).repeat(PER_CLASS)
    centres = normalize(torch.randn(classes, DEPTH, generator=generator), dim=1)
    noise = normalize(torch.randn(len(y), DEPTH, generator=generator), dim=1)
    return normalize(centres[y] + noise, dim=1), y


def check(name: str) -> None:
    """Refuses to time what is not the same: loss and gradient in float64."""
    member = members()[name]
    if member.peer is None:
        return
    x, y = make_batch(128)
    # So far off that classes overlap: else some losses are 0, which says nothing.
    x = x + 0.2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0))
    refuse_unequal(name, step_of(member.ours, x, y), step_of(member.peer, x, y), member.within)


def times(name: str, n: int) -> dict[str, dict[str, float]]:
    """Medians of interleaved rounds of each candidate."""
    member = members()[name]
    others = {} if member.peer is None or n > member.most else {PEER: member.peer}
    return timed(*make_batch(n), member.ours, others, rounds_for(n), MOST_SECONDS)


def peak(name: str, candidate: str, n: int) -> int | None:
    """Resident bytes at the peak of a step in a fresh process; None where it is not known."""
    return printed("bench.family", name, candidate, n)


def parse(arguments: list[str]) -> tuple[str, str, int]:
    """Member, candidate and N of a peak; exits with what was wanted."""
    if len(arguments) != 3:
        sys.exit(
            "bench.family: expected a loss, a candidate and N, whose peak memory is printed, got "
            f"{' '.join(arguments) or 'nothing'}; `python -m bench family` measures all of them"
        )
    name, candidate, n = arguments
    known = members()
    candidates = ["ours"] if name in known and known[name].peer is None else ["ours", PEER]
    for option, got, wanted in (("loss", name, list(known)), ("candidate", candidate, candidates)):
        if got not in wanted:
            sys.exit(f"bench.family: {option}: expected one of {', '.join(wanted)}, got {got}")
    return name, candidate, check_count("bench.family", "N", n, PER_CLASS)


def print_peak(name: str, candidate: str, n: int) -> None:
    member = members()[name]
    function = member.ours if candidate == "ours" else member.peer
    assert function is not None
    x, y = make_batch(n)

    def step(x: Tensor) -> None:
        function(x, y if len(x) == n else make_batch(len(x))[1]).backward()

    # Small, or what the heap keeps of it would hide as much of the step that is measured.
    step(make_batch(64)[0].requires_grad_())
    print(json.dumps(peak_of(step, x.requires_grad_())))


def measure(sizes: tuple[int, ...]) -> list[dict[str, Any]]:
    rows = []
    jobs = [(name, n) for name in members() for n in sizes]
    for name, n in (progress := tqdm(jobs, desc="family", unit="case")):
        progress.set_postfix_str(f"{name} {n}")
        check(name)
        member = members()[name]
        compared = member.peer is not None and n <= member.most
        if member.peer is None:
            left_out = "it has none"
        else:
            left_out = "" if compared else member.why
        candidates = ("ours", PEER) if compared else ("ours",)
        peaks = {who: peak(name, who, n) for who in candidates}
        row = {"member": name, "n": n, "left_out": left_out, "bytes": peaks}
        rows.append({**row, "times": times(name, n)})
    return rows


def run(machine: dict[str, object], quick: bool) -> None:
    from bench import family_report

    shape = {"d": DEPTH, "per_class": PER_CLASS}
    sizes = SIZES[:1] if quick else SIZES
    keep(
        "family",
        machine,
        quick,
        lambda: {"shape": shape, "family": measure(sizes)},
        family_report.table,
    )
    if not quick:
        print("\npage and plot: docs/benchmark_family.md, docs/bench_family.png")


if __name__ == "__main__":
    print_peak(*parse(sys.argv[1:]))
