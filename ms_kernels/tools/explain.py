"""Draw what a loss does to the handwritten digits: weights, mined pairs, and training."""

import sys
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

import ms_kernels
from ms_kernels.tools.command_line import check_count, check_picture
from ms_kernels.tools.demo import BATCH, network, place

# The first is trained with; of the others it is only counted what they would mine.
EPSILONS = {0.1: "epsilon 0.1, trained with", 0.0: "epsilon 0", -0.1: "epsilon -0.1"}

MESSAGE = """
Look at
  top     how the weight of a pair follows its similarity. Contrastive and Triplet know steps only;
          MultiSimilarity (dashed on top of BinLifted, its shape) pushes negatives above its base of
          0.5 and hardly any below, Circle too; NPair, LiftedStructure and NCA still push the easy
          ones; NTXent and SupCon, at their low temperatures, the hardest alone. SupCon falls below
          0 for a positive that is more similar than the anchor's others: it evens them out.
  left    positive and negative pairs of all digits after training, and those that mining keeps
          (filled): where the two kinds overlap, give or take epsilon. Each anchor has thresholds of
          its own: dashed is their median, shaded are the middle 80%.
  right   the share of anchors that still have a mined pair; in 200 steps it falls. Where it nears 0
          a step learns from little: take a larger epsilon, a larger batch, or stop."""


def run(steps: int | str, output: str) -> None:
    """Train briefly, draw the plots of `ms_kernels.tools.plots` as one PNG, say what they show."""
    steps = check_count("explain", "--steps", steps)
    try:
        check_picture("explain", output)
        from matplotlib.figure import Figure
        from sklearn.datasets import load_digits
        from tqdm import tqdm

        from ms_kernels.tools import plots
    except ImportError as error:
        sys.exit(f"explain needs {error.name}: pip install '.[demo]' in the source folder")
    digits = load_digits()
    images = torch.tensor(digits.data / 16).view(-1, 1, 8, 8)
    images = place(images, torch.Generator().manual_seed(0)).float()
    labels = torch.tensor(digits.target)
    print("Handwritten digits: a small network trained with the Multi-Similarity loss.")
    with tqdm(range(steps), desc="training", unit="step", file=sys.stdout, disable=None) as bar:
        embeddings, history = train(images, labels, bar)
    figure = Figure(figsize=(14, 9.5), layout="constrained")
    halves: Any = figure.subfigures(2, 1, hspace=0.04)
    upper, lower = halves
    plots.weight_curves(ax=upper.subplots(1, 2))
    left, right = lower.subplots(1, 2)
    plots.similarity_histogram(embeddings, labels, ax=left)
    plots.mined_share(history, ax=right)
    figure.savefig(output, dpi=100)
    print(MESSAGE)
    print(f"\nPicture: {output}")


def train(
    images: Tensor, labels: Tensor, steps: Iterable[int]
) -> tuple[Tensor, dict[str, list[float]]]:
    """The trained embeddings, and at every step the share of anchors with a mined pair."""
    torch.manual_seed(0)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    history: dict[str, list[float]] = {name: [] for name in EPSILONS.values()}
    for _ in steps:
        chosen = torch.randperm(len(images))[:BATCH]
        embeddings, y = net(images[chosen]), labels[chosen]
        loss = ms_kernels.multi_similarity_loss(embeddings, y)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        for epsilon, name in EPSILONS.items():
            stats = ms_kernels.row_statistics(embeddings, y, epsilon=epsilon)
            history[name].append((stats.pos_kept + stats.neg_kept > 0).double().mean().item())
    with torch.no_grad():
        return net(images), history
