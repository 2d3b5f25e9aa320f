"""Batches of so many classes with so many images each.

A batch is a function of the seed and the step: a run goes on at any step without a state, and every
process knows the batch of all. In an epoch each class comes once, in a new order.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch

from examples.retrieval.images import seeded
from examples.retrieval.refusal import Refusal


class Batch(NamedTuple):
    """items: (index, draw) of each image; a draw has a number of its own in the whole run."""

    items: list[tuple[int, int]]
    labels: list[int]


class ClassSampler:
    """classes x images of the labels. Of a class with fewer images some come twice, differently
    cropped; one with a single image has no positive pair, and is left out."""

    def __init__(self, labels: Sequence[int], classes: int, images: int, seed: int) -> None:
        members: dict[int, list[int]] = {}
        for index, label in enumerate(labels):
            members.setdefault(label, []).append(index)
        self.members = {label: m for label, m in sorted(members.items()) if len(m) > 1}
        self.left_out = len(members) - len(self.members)
        if len(self.members) < classes:
            alone = f", and {self.left_out} with a single image" if self.left_out else ""
            raise Refusal(
                f"--classes: expected at most the {len(self.members)} classes that have two images "
                f"to train with, got {classes}{alone}; choose fewer classes a batch"
            )
        self.labels = labels
        self.names = list(self.members)
        self.classes, self.images, self.seed = classes, images, seed
        self.epoch_steps = len(self.names) // classes

    def batch(self, step: int) -> Batch:
        epoch, place = divmod(step, self.epoch_steps)
        order = torch.randperm(len(self.names), generator=seeded("classes", self.seed, epoch))
        chosen = order[place * self.classes : (place + 1) * self.classes].tolist()
        generator = seeded("images", self.seed, step)
        indices = []
        for k in chosen:
            m = self.members[self.names[k]]
            # All of a class before any comes twice.
            rounds = -(-self.images // len(m))
            some = torch.cat([torch.randperm(len(m), generator=generator) for _ in range(rounds)])
            indices += [m[i] for i in some[: self.images].tolist()]
        first = step * self.classes * self.images
        items = [(index, first + place) for place, index in enumerate(indices)]
        return Batch(items, [self.labels[index] for index in indices])


class Steps(torch.utils.data.Sampler[list[tuple[int, int]]]):
    """The items of each step from `start` to `stop` that are this process's."""

    def __init__(self, sampler: ClassSampler, start: int, stop: int, rank: int, world: int) -> None:
        self.sampler, self.steps = sampler, range(start, stop)
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for step in self.steps:
            yield share(self.sampler.batch(step).items, self.rank, self.world)

    def __len__(self) -> int:
        return len(self.steps)


def share(whole: list, rank: int, world: int) -> list:  # type: ignore[type-arg]
    """This process's part of a batch: neighbouring rows."""
    n = len(whole)
    return whole[n * rank // world : n * (rank + 1) // world]
