"""What users run today, each as a function of embeddings and labels that returns the mean loss."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor

import ms_kernels
from ms_kernels import reference

Loss = Callable[[Tensor, Tensor], Tensor]


def ours(x: Tensor, y: Tensor) -> Tensor:
    return ms_kernels.multi_similarity_loss(x, y, backend="cpu")


def panels(x: Tensor, y: Tensor) -> Tensor:
    return ms_kernels.multi_similarity_loss(x, y, backend="panels")


def dense(x: Tensor, y: Tensor) -> Tensor:
    return reference.multi_similarity_loss(x, y)


@functools.cache
def _compiled() -> Loss:
    # One graph for each shape, as a training with a fixed batch size has.
    torch._dynamo.config.cache_size_limit = 64
    return torch.compile(reference.multi_similarity_loss, dynamic=False)


def compiled(x: Tensor, y: Tensor) -> Tensor:
    return _compiled()(x, y)


@functools.cache
def has_peer() -> bool:
    """Whether pytorch-metric-learning can be compared with: it needs packages of its own."""
    try:
        import pytorch_metric_learning.losses  # noqa: F401
    except ImportError as error:
        print(f"pytorch-metric-learning is left out: {error}", flush=True)
        return False
    return True


@functools.cache
def _metric_learning() -> tuple[Callable[..., Tensor], Callable[..., object]]:
    from pytorch_metric_learning.losses import MultiSimilarityLoss
    from pytorch_metric_learning.miners import MultiSimilarityMiner

    return MultiSimilarityLoss(alpha=2, beta=50, base=0.5), MultiSimilarityMiner(epsilon=0.1)


def metric_learning(x: Tensor, y: Tensor) -> Tensor:
    loss, miner = _metric_learning()
    return loss(x, y, miner(x, y))


def row_loop(x: Tensor, y: Tensor) -> Tensor:
    """One anchor at a time with boolean indexing, as the released code goes about it."""
    unit = torch.nn.functional.normalize(x, dim=1)
    parts = [0 * unit.sum()]  # connected to the graph even if nothing is kept
    for i in range(len(unit)):
        sim = unit @ unit[i]
        same = y == y[i]
        same[i] = False
        positives, negatives = sim[same], sim[y != y[i]]
        if not len(positives) or not len(negatives):
            continue
        low, high = positives.min() - 0.1, negatives.max() + 0.1
        positives, negatives = positives[positives < high], negatives[negatives > low]
        if len(positives) and len(negatives):
            parts.append(torch.log1p(torch.exp(-2 * (positives - 0.5)).sum()) / 2)
            parts.append(torch.log1p(torch.exp(50 * (negatives - 0.5)).sum()) / 50)
    return torch.stack(parts).sum() / len(unit)  # a running sum would round at every row


BASELINES: dict[str, Loss] = {
    "dense": dense,
    "compiled": compiled,
    "metric_learning": metric_learning,
    "row_loop": row_loop,
    "panels": panels,
}
LABELS = {
    "ours": "ms_kernels (cpu)",
    "panels": "ms_kernels (panels)",
    "dense": "dense PyTorch",
    "compiled": "dense, torch.compile",
    "metric_learning": "pytorch-metric-learning, loss + miner",
    "row_loop": "loop over anchors",
}
PEER = "metric_learning"
SLOW = (PEER, "row_loop")


def applies(name: str, n: int) -> bool:
    """The loop takes half a minute a step above 4096: it says nothing new there."""
    return name != "row_loop" or n <= 4096
