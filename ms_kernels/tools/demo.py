"""Train an embedding of handwritten digits, with the fused loss and with the dense one."""

import sys
import time
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, normalize

import ms_kernels
from ms_kernels.backends import dispatch
from ms_kernels.tools.command_line import check_count, check_picture
from ms_kernels.tools.step_cost import measure

RANKS = (1, 2, 4, 8)
SIZE = 12  # pixels of an image once it is placed
BATCH = 200
MEASURED, DEPTH = (256, 1024, 2048, 4096), 128  # N and D of a step of the loss alone
STEPS = 3  # timed, of each
# Less is not seen in the resident memory of a process: Linux counts pages in batches, and those
# that the first step freed serve again.
LEAST_PEAK = 1 << 20
# In float64 no rounding flips a mined pair: what differs is the two implementations alone.
TOLERANCE = 1e-6


class Run(NamedTuple):
    losses: list[float]
    before: list[float]  # Recall@K in percent
    after: list[float]
    embeddings: Tensor  # of the unseen classes
    seconds: float


class Cost(NamedTuple):
    """Of a step of N rows, the fused loss first and then the dense one."""

    n: int
    milliseconds: tuple[float, float]
    peak_bytes: tuple[float, float] | None  # known on Linux


def run(steps: int | str, output: str) -> None:
    """The whole demo: two runs, two tables, a picture. Exits with 1 if the runs differ."""
    steps = check_count("demo", "--steps", steps)
    try:
        check_picture("demo", output)
        import tqdm  # noqa: F401
        from sklearn.datasets import load_digits

        from ms_kernels.tools.demo_plot import draw
    except ImportError as error:
        sys.exit(f"the demo needs {error.name}: pip install '.[demo]' in the source folder")
    digits = load_digits()
    images = torch.tensor(digits.data / 16).view(-1, 1, 8, 8)
    labels = torch.tensor(digits.target)
    backend = dispatch.choose("cpu", dispatch.built("cpu"))
    print("Handwritten digits: train on classes 0-4, retrieve the unseen classes 5-9.")
    print(f"Once with the fused loss (backend {backend!r}), once with the dense reference.\n")
    fused = train(images, labels, steps, backend)
    dense = train(images, labels, steps, "reference")
    difference = max(abs(a - b) for a, b in zip(fused.losses, dense.losses, strict=True))
    print_table(fused, dense, difference, backend)
    costs = print_costs(backend)
    draw(fused, dense, labels[labels > 4], costs, output)
    print(f"\nPicture: {output}")
    if not difference <= TOLERANCE:
        sys.exit(f"the two loss curves differ by {difference:.1e}, more than {TOLERANCE:.0e}")


def train(images: Tensor, labels: Tensor, steps: int, backend: str) -> Run:
    from tqdm import tqdm

    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    seen = labels < 5
    unseen = place(images[~seen], torch.Generator().manual_seed(1))
    net = network().double()
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    before = recall(net, unseen, labels[~seen])
    losses = []
    start = time.perf_counter()
    with tqdm(range(steps), desc=f"{backend:9}", unit="step", file=sys.stdout, disable=None) as bar:
        for _ in bar:
            chosen = torch.randperm(int(seen.sum()), generator=generator)[:BATCH]
            embeddings = net(place(images[seen][chosen], generator))
            loss = ms_kernels.multi_similarity_loss(
                embeddings, labels[seen][chosen], backend=backend
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(loss.item())
            bar.set_postfix(loss=f"{losses[-1]:.3f}", refresh=False)
    seconds = time.perf_counter() - start
    with torch.no_grad():
        embeddings = normalize(net(unseen), dim=1)
    return Run(losses, before, recall(net, unseen, labels[~seen]), embeddings, seconds)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 5, padding=2),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Linear(256, 32),
    )


def place(images: Tensor, generator: torch.Generator) -> Tensor:
    """Each digit shifted, turned up to 20 degrees and scaled up to 15% on a larger canvas."""
    n = len(images)
    shift, turn, scale = (
        2 * torch.rand(n, k, generator=generator, dtype=torch.float64) - 1 for k in (2, 1, 1)
    )
    cos, sin = (0.35 * turn).cos(), (0.35 * turn).sin()
    zoom = (1 + 0.15 * scale) * SIZE / 8
    rows = [torch.cat([cos, -sin], 1) * zoom, torch.cat([sin, cos], 1) * zoom]
    motion = torch.cat([torch.stack(rows, 1), 0.25 * shift[:, :, None]], 2)
    grid = affine_grid(motion, [n, 1, SIZE, SIZE], align_corners=False)
    return grid_sample(images, grid, align_corners=False)


@torch.no_grad()
def recall(net: nn.Module, images: Tensor, labels: Tensor) -> list[float]:
    """Percent of images with one of their class among the K nearest by cosine."""
    unit = normalize(net(images), dim=1)
    sim = (unit @ unit.T).fill_diagonal_(-2)
    nearest = labels[sim.topk(max(RANKS), dim=1).indices] == labels[:, None]
    return [100 * nearest[:, :k].any(1).double().mean().item() for k in RANKS]


def print_table(fused: Run, dense: Run, difference: float, backend: str) -> None:
    row = "{:34} {:>14} {:>14}".format
    print("\n" + row("", f"fused ({backend})", "dense"))
    print(row("loss, first step", f"{fused.losses[0]:.4f}", f"{dense.losses[0]:.4f}"))
    print(row("loss, last step", f"{fused.losses[-1]:.4f}", f"{dense.losses[-1]:.4f}"))
    verdict = "equal" if difference <= TOLERANCE else "DIFFERENT"
    print(row("largest difference of the curves", f"{difference:.1e}", verdict))
    for k, before, after, other in zip(RANKS, fused.before, fused.after, dense.after, strict=True):
        print(row(f"Recall@{k} untrained (%)", f"{before:.1f}", f"{before:.1f}"))
        print(row(f"Recall@{k} trained (%)", f"{after:.1f}", f"{other:.1f}"))
    print(row("training (s)", f"{fused.seconds:.1f}", f"{dense.seconds:.1f}"))


def print_costs(backend: str) -> list[Cost]:
    print(f"\nOne step of the loss alone, D = {DEPTH}, float32, each in a process of its own:")
    row = "{:>6} {:>16} {:>10} {:>8} {:>20} {:>10}".format
    print(row("N", "time (ms), fused", "dense", "ratio", "peak (MiB), fused", "dense"))
    costs = []
    for n in MEASURED:
        found = [measure(name, n, DEPTH, STEPS) for name in (backend, "reference")]
        times, peaks = ([cost[key] for cost in found] for key in ("milliseconds", "peak_bytes"))
        fast, slow = (time for time in times if time is not None)
        known = [peak for peak in peaks if peak is not None]
        cost = Cost(n, (fast, slow), (known[0], known[1]) if known else None)
        shown = (f"{p / 2**20:.0f}" if p >= LEAST_PEAK else "< 1" for p in cost.peak_bytes or ())
        sizes = list(shown) or ["", ""]
        print(row(n, f"{fast:.2f}", f"{slow:.2f}", f"{slow / fast:.1f}x", *sizes), flush=True)
        costs.append(cost)
    budget = ms_kernels.options.workspace_bytes >> 20
    print(
        "A few hundred rows take next to no memory either way: there only time is won. The dense\n"
        "loss needs several N x N matrices; the fused one keeps similarities for its gradient in\n"
        f"up to {budget} MiB (ms_kernels.options.workspace_bytes) and computes the others twice."
    )
    return costs
