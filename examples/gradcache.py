"""A batch of 16,384 images through a network in pieces of 256: python examples/gradcache.py

The loss needs all embeddings at once, the network need not have all images at once (Gao et al.,
Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup, 2021). Embed without
a graph; take the loss and its gradient by the embeddings; embed again piece by piece, with a graph
this time, and send each piece its part of the gradient. The gradient is that of the whole batch; of
activations there are never more than those of a piece.
"""

from typing import Any

import torch
from torch import Tensor, nn

from ms_kernels import MultiSimilarityLoss

BATCH, PIECE = 16384, 256


def backward_in_pieces(
    net: nn.Module, criterion: nn.Module, images: Tensor, labels: Tensor
) -> Tensor:
    """The loss of all images; gradients are added to the parameters of the network."""
    pieces = images.split(PIECE)
    with torch.no_grad():
        embeddings = torch.cat([net(piece) for piece in pieces])
    embeddings.requires_grad_()
    loss: Tensor = criterion(embeddings, labels)
    (gradient,) = torch.autograd.grad(loss, embeddings)
    for piece, part in zip(pieces, gradient.split(PIECE), strict=True):
        net(piece).backward(part)  # a network with dropout must draw the same masks as above
    return loss.detach()


class Activations(torch.autograd.graph.saved_tensors_hooks):
    """Counts the bytes that autograd keeps for backward passes, and the most at one time."""

    def __init__(self) -> None:
        self.now = self.most = 0
        super().__init__(self.keep, lambda kept: kept.tensor)

    def keep(self, tensor: Tensor) -> Any:
        return Kept(self, tensor)


class Kept:
    def __init__(self, counter: Activations, tensor: Tensor) -> None:
        self.counter, self.tensor = counter, tensor
        counter.now += tensor.nbytes
        counter.most = max(counter.most, counter.now)

    def __del__(self) -> None:
        self.counter.now -= self.tensor.nbytes


torch.manual_seed(0)
net = nn.Sequential(
    nn.Conv2d(1, 8, 3, stride=2), nn.ReLU(), nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(),
    nn.Linear(256, 64),
)  # fmt: skip
criterion = MultiSimilarityLoss()
optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
centres = torch.randn(64, 1, 14, 14)


def batch(size: int) -> tuple[Tensor, Tensor]:
    labels = torch.randint(len(centres), (size,))
    return centres[labels] + torch.randn(size, 1, 14, 14), labels


images, labels = batch(1024)
of_one_pass = Activations()
with of_one_pass:
    criterion(net(images), labels).backward()
whole = [p.grad.clone() for p in net.parameters() if p.grad is not None]
optimizer.zero_grad()
backward_in_pieces(net, criterion, images, labels)
found = [p.grad for p in net.parameters() if p.grad is not None]
apart = max(float((a - b).abs().max() / b.abs().max()) for a, b in zip(found, whole, strict=True))
print(f"1,024 images: gradients in pieces and of one pass differ by {apart:.0e} of the largest")
assert apart < 1e-5
a_row = of_one_pass.most / len(images)

in_pieces = Activations()
for step in range(3):
    images, labels = batch(BATCH)
    optimizer.zero_grad()
    with in_pieces:
        loss = backward_in_pieces(net, criterion, images, labels)
    optimizer.step()
    print(f"step {step}  {BATCH:,} images  loss {loss.item():.4f}")

kept, of_all = in_pieces.most / 2**20, BATCH * a_row / 2**20
print(f"kept for backward at one time: {kept:.0f} MiB; one pass would keep {of_all:.0f}")
gradient = BATCH * 64 * 4  # bytes of the embeddings' gradient, which the loss keeps
assert in_pieces.most <= 1.1 * max(PIECE * a_row, gradient)
