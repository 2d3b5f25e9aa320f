"""python -m bench retrieval [quick]: the paper's ablation on the glyphs of many fonts.

Wang et al. (CVPR 2019) ask which similarities a weight should follow: the pair's own (S), those of
the anchor's other negatives (N), those of its positives (P, by mining). Each member trains the same
network on the same batches, by the trainer of examples/retrieval, and retrieves characters that no
step has seen. A seed draws weights, batches and crops, the same for all members. Network, steps and
learning rate are the same for all and tuned for none; rules have their default constants.

And what a step costs beside one of pytorch-metric-learning: the same network and batches, only the
loss is the other library's. The fonts are those of the package pretix-fontpack-free.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from bench.baselines import BASELINES, PEER, metric_learning, ours
from bench.keep import keep
from bench.retrieval_report import UNTRAINED, table
from examples.retrieval.evaluate import embed_all, scores_of
from examples.retrieval.glyphs import glyphs
from examples.retrieval.layouts import Benchmark
from examples.retrieval.options import Options
from examples.retrieval.processes import Processes
from examples.retrieval.train import Run
from ms_kernels.tools.step_cost import peak_of

# Of unit rows every similarity lies between these margins: each pair of the loss weighs 1.
EQUAL = {"positive_margin": 1.01, "negative_margin": -1.01}
# Those of retrieval_report.FOLLOWS.
RULES: dict[str, dict[str, Any]] = {
    "binomial": {"loss": "binomial"},
    "lifted structure": {"loss": "lifted"},
    "MS mining alone": {"loss": "contrastive", "loss_options": EQUAL, "mining": "ms"},
    "BinLifted": {"loss": "bin-lifted"},
    "MS weighting": {"loss": "ms", "mining": "none"},
    "binomial + MS mining": {"loss": "binomial", "mining": "ms"},
    "lifted + MS mining": {"loss": "lifted", "mining": "ms"},
    "MS": {"loss": "ms"},
}
SEEDS, STEPS = 3, 200
SIZES = (80, 1000)  # the paper's batch, and its batch for Stanford Online Products
ROUNDS = 30


def options_of(folder: str, steps: int, seed: int, **rule: Any) -> Options:
    """A run, but for its rule with the defaults of --dataset glyphs."""
    small = {"size": 32, "least_crop": 0.7, "dim": 128, "lr": 1e-3, "device": "cpu"}
    return Options("glyphs", output=folder, steps=steps, seed=seed, save_every=0, **small, **rule)


def ablation(benchmark: Benchmark, seeds: int, steps: int) -> list[dict[str, Any]]:
    work = [(seed, name) for seed in range(seeds) for name in (UNTRAINED, *RULES)]
    found = []
    for seed, name in tqdm(work, desc="ablation", unit="run"):
        rule = {} if name == UNTRAINED else RULES[name]
        with tempfile.TemporaryDirectory() as folder:
            run = Run(options_of(folder, steps, seed, **rule), benchmark, Processes("cpu"))
            if name != UNTRAINED:
                run.train()
            scores = scores_of(embed_all(run.model, benchmark, run.options, run.processes), run.ks)
        found.append(
            {
                "member": name,
                "seed": seed,
                "recall_at_1": scores.recall[1],
                "map_at_r": scores.map_at_r,
                "r_precision": scores.r_precision,
                "queries": scores.queries,
                "seconds_a_step": statistics.median(run.seconds) if run.seconds else None,
            }
        )
        tqdm.write(json.dumps(found[-1]))  # half an hour, of which nothing is lost
    return found


class Peer(nn.Module):
    """The other library's loss with its miner, for the trainer."""

    def forward(self, embeddings: Tensor, labels: Tensor, ids: Tensor) -> Tensor:
        return metric_learning(embeddings, labels)


def steps_in_turn(benchmark: Benchmark, images: int, rounds: int) -> dict[str, Any]:
    """Seconds of whole training steps, and of loss and gradient in them, taking turns."""
    with tempfile.TemporaryDirectory() as folder:
        options = options_of(folder, 1, 0, classes=images // 5, images=5)
        runs = {name: Run(options, benchmark, Processes("cpu")) for name in ("ours", PEER)}
        runs[PEER].criterion = Peer()  # type: ignore[assignment]
        seconds: dict[str, list[float]] = {name: [] for name in runs}
        losses: dict[str, list[float]] = {name: [] for name in runs}
        for step in range(rounds + 2):
            x = torch.stack(batch_of(runs["ours"], step))
            for name, run in runs.items():
                run.model.train()
                start = time.perf_counter()
                losses[name].append(run._train_step(run.model, x).item())
                seconds[name].append(time.perf_counter() - start)
    pairs = zip(seconds["ours"][2:], seconds[PEER][2:], strict=True)
    return {
        "n": images,
        "seconds": {name: statistics.median(values[2:]) for name, values in seconds.items()},
        "ratio": statistics.median(theirs / ours for ours, theirs in pairs),
        "largest_difference": max(
            abs(a - b) for a, b in zip(losses["ours"], losses[PEER], strict=True)
        ),
    }


def batch_of(run: Run, step: int) -> list[Tensor]:
    """The images of a step, decoded once for all who take it."""
    data = run.training_images()
    return [data[item] for item in run.sampler.batch(step).items]


def peaks(n: int) -> dict[str, int | None]:
    """Bytes at the peak of loss and gradient alone, each in a process of its own."""
    found = {}
    for name in ("ours", PEER):
        command = [sys.executable, "-m", "bench.retrieval", name, str(n)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found[name] = json.loads(done.stdout)
    return found


def print_peak(name: str, n: int) -> None:
    function = ours if name == "ours" else BASELINES[name]
    torch.manual_seed(0)
    y = torch.arange(n) // 5

    def step(x: Tensor) -> None:
        function(x, y[: len(x)]).backward()  # type: ignore[no-untyped-call]

    step(torch.randn(40, 128, requires_grad=True))
    print(json.dumps(peak_of(step, torch.randn(n, 128, requires_grad=True))))


def measure(quick: bool) -> dict[str, Any]:
    benchmark = glyphs(None)
    rounds = 2 if quick else ROUNDS
    costs = [
        {**steps_in_turn(benchmark, n, rounds if n == SIZES[0] else rounds // 2), "bytes": peaks(n)}
        for n in SIZES
    ]
    seeds, steps = (2, 3) if quick else (SEEDS, STEPS)
    return {
        "costs": costs,
        "seeds": seeds,
        "steps": steps,
        "images": {
            "train": len(benchmark.train.labels),
            "test": len(benchmark.query.labels),
            "train_classes": len(set(benchmark.train.labels)),
            "test_classes": len(set(benchmark.query.labels)),
        },
        "retrieval": ablation(benchmark, seeds, steps),
    }


def run(machine: dict[str, object], quick: bool) -> None:
    keep("retrieval", machine, quick, lambda: measure(quick), table)


if __name__ == "__main__":
    if len(sys.argv) != 3 or sys.argv[1] not in ("ours", PEER) or not sys.argv[2].isdigit():
        sys.exit("bench.retrieval: expected a candidate and N; python -m bench retrieval does all")
    print_peak(sys.argv[1], int(sys.argv[2]))
