"""Candidates take turns within each round, so that a noisy machine is noisy for all of them."""

import statistics
import time

import torch
from torch import Tensor

from bench.baselines import BASELINES, SLOW, Loss, applies


def rounds_for(n: int) -> int:
    return 40 if n <= 512 else 7 if n <= 2048 else 5 if n <= 4096 else 3


def slow_rounds_for(n: int) -> int:
    return 10 if n <= 512 else 4 if n <= 2048 else 2 if n <= 4096 else 1


class Turns:
    """Times of every candidate, one list each for forward, backward and the whole step."""

    def __init__(self, x: Tensor, y: Tensor, with_gradient: bool) -> None:
        self.x = x.clone().requires_grad_(with_gradient)
        self.y = y
        self.with_gradient = with_gradient
        self.baselines = {k: f for k, f in BASELINES.items() if applies(k, len(x))}
        if not with_gradient:  # the loop's forward pass is a share of its step, known from there
            self.baselines.pop("row_loop", None)
        self.times: dict[str, dict[str, list[float]]] = {}
        self.round = 0

    def run(self, name: str, function: Loss) -> None:
        self.x.grad = None
        start = time.perf_counter()
        with torch.set_grad_enabled(self.with_gradient):
            loss = function(self.x, self.y)
        middle = time.perf_counter()
        if self.with_gradient:
            loss.backward()
        end = time.perf_counter()
        into = self.times.setdefault(name, {"forward": [], "backward": [], "step": []})
        into["forward"].append(middle - start)
        into["backward"].append(end - middle)
        into["step"].append(end - start)

    def others(self) -> None:
        """One turn of every baseline; the slow ones sit out later rounds."""
        for name, function in self.baselines.items():
            if name not in SLOW or self.round < slow_rounds_for(len(self.x)):
                self.run(name, function)
        self.round += 1

    def warm_up(self, ours: Loss) -> None:
        """Compiles, loads, and forgets the times."""
        self.run("ours", ours)
        for name, function in self.baselines.items():
            if name not in SLOW or len(self.x) <= 512:
                self.run(name, function)
        self.times.clear()

    def summary(self) -> dict[str, dict[str, float]]:
        """Median seconds of each candidate, ratios to ours taken round by round, and quartiles."""
        found = {}
        ours = self.times["ours"]["step"]
        for name, kinds in self.times.items():
            ratios = sorted(t / o for t, o in zip(kinds["step"], ours, strict=False))
            found[name] = {kind: statistics.median(times) for kind, times in kinds.items()}
            steps = sorted(kinds["step"])
            found[name]["step_low"] = steps[len(steps) // 4]
            found[name]["step_high"] = steps[-1 - len(steps) // 4]
            found[name]["ratio"] = statistics.median(ratios)
            found[name]["ratio_low"] = ratios[len(ratios) // 4]
            found[name]["ratio_high"] = ratios[-1 - len(ratios) // 4]
            found[name]["rounds"] = len(ratios)
        return found
