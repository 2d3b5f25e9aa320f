"""The paper's ablation on handwritten digits: python examples/ablation_digits.py [--seeds 5]

Wang et al. (CVPR 2019) ask which similarities a weight should follow: the pair's own (S), those of
the anchor's other negatives (N), those of its positives (P, by mining). Here each member is trained
on five digits and retrieves the other five, never seen in training, each image turned, shifted and
scaled by chance. A seed draws the classes, the weights of the network and the batches, the same for
all members.

Network, steps and Adam's learning rate are the same for all and tuned for none; Adam divides out
constant factors of a loss. Rules have their default constants, but for "mining alone", where every
mined pair weighs 1. Five digits and a small network are no Cars196: the order need not be the
paper's, and a "minus MS" within its own deviation says nothing.
"""

import argparse
import sys

import torch
from sklearn.datasets import load_digits
from torch import Tensor
from torch.nn.functional import normalize
from tqdm import tqdm

from ms_kernels import (
    BinLifted,
    BinomialDeviance,
    Contrastive,
    LiftedStructure,
    MultiSimilarity,
    MultiSimilarityMining,
    PairLoss,
)
from ms_kernels.tools.demo import place

MINED = MultiSimilarityMining(epsilon=0.1)
# Of unit rows every similarity lies between these margins: each pair of the loss weighs 1.
EQUAL = Contrastive(positive_margin=1.01, negative_margin=-1.01)
LOSSES = {
    "binomial                  S": PairLoss(BinomialDeviance()),
    "lifted structure          N": PairLoss(LiftedStructure()),
    "MS mining alone           P": PairLoss(EQUAL, MINED),
    "BinLifted                 S+N": PairLoss(BinLifted()),
    "binomial + MS mining      S+P": PairLoss(BinomialDeviance(), MINED),
    "lifted + MS mining        N+P": PairLoss(LiftedStructure(), MINED),
    "MS                        S+N+P": PairLoss(MultiSimilarity(), MINED),
}
BATCH, WIDTH, LEARNING_RATE = 100, 32, 1e-3


def network() -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 5, padding=2),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Conv2d(16, 32, 3, padding=1),
        torch.nn.ReLU(),
        torch.nn.AdaptiveAvgPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(128, WIDTH),
    )


def recall(embeddings: Tensor, labels: Tensor) -> float:
    """Percent of images whose nearest other image, by cosine, is of their class."""
    unit = normalize(embeddings, dim=1)
    nearest = (unit @ unit.T).fill_diagonal_(-2).argmax(1)
    return 100 * (labels[nearest] == labels).double().mean().item()


def run(
    loss_function: PairLoss | None, images: Tensor, labels: Tensor, seed: int, steps: int
) -> float:
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    seen = torch.isin(labels, torch.randperm(10, generator=generator)[:5])
    unseen = place(images[~seen], generator).float()
    images, y = images[seen], labels[seen]
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=LEARNING_RATE)
    for _ in range(steps):
        chosen = torch.randperm(len(images), generator=generator)[:BATCH]
        embeddings = net(place(images[chosen], generator).float())
        assert loss_function is not None
        loss = loss_function(embeddings, y[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return recall(net(unseen), labels[~seen])


def spread(values: Tensor) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{values.mean():6.2f}" + (f" ± {values.std():4.2f}" if len(values) > 1 else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=5, help="runs of each loss")
    parser.add_argument("--steps", type=int, default=200, help="training steps of a run")
    parser.add_argument("--quick", action="store_true", help="2 seeds of 5 steps: does it run?")
    options = parser.parse_args()
    for name, given in (("--seeds", options.seeds), ("--steps", options.steps)):
        if given < 1:
            parser.error(f"{name}: expected at least 1, got {given}")
    seeds, steps = (2, 5) if options.quick else (options.seeds, options.steps)
    pixels, digits = load_digits(return_X_y=True)
    images = torch.tensor(pixels / 16).view(-1, 1, 8, 8)
    labels = torch.tensor(digits)
    runs: dict[str, list[float]] = {name: [] for name in ["untrained", *LOSSES]}
    work = [(seed, name) for seed in range(seeds) for name in runs]
    for seed, name in tqdm(work, unit="run", file=sys.stdout, disable=None):
        loss, many = (LOSSES[name], steps) if name in LOSSES else (None, 0)
        runs[name].append(run(loss, images, labels, seed, many))
    found = {name: torch.tensor(values, dtype=torch.float64) for name, values in runs.items()}
    last = list(found)[-1]
    print(f"Recall@1 (%) on five unseen digits, mean ± deviation of {seeds} seeds, {steps} steps")
    print(f"{'':34}{'Recall@1':>13}  {'minus MS':>13}")
    for name, values in found.items():
        beside = "" if name == last else spread(values - found[last])
        print(f"{name:34}{spread(values)}  {beside}")
    if options.quick:
        print("\nTwo seeds of five steps: this shows that it runs, and nothing of the losses.")


if __name__ == "__main__":
    main()
