"""What a run needs to go on as if it had never stopped, in one file that is whole or not there."""

import os
import pickle
from pathlib import Path
from typing import Any

import torch

from examples.retrieval.images import told
from examples.retrieval.layouts import Benchmark
from examples.retrieval.options import Options, differences
from examples.retrieval.refusal import Refusal

NAME = "checkpoint.pt"
# Batches and crops are functions of the seed and the step; these are states.
STATES = ("model", "optimizer", "criterion")
PARTS = {"options", "step", "chance", "images", "losses", "scores", *STATES}


def chance() -> dict[str, Any]:
    """The states of torch's generators, which dropout in a backbone draws from."""
    found = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        found["cuda"] = torch.cuda.get_rng_state()
    return found


def save(path: Path, state: dict[str, Any]) -> None:
    """Under another name first: a run that is killed meanwhile leaves the last one whole."""
    beside = path.with_name(path.name + ".part")
    torch.save(state, beside)
    os.replace(beside, path)


def load(path: Path) -> dict[str, Any]:
    """On the CPU."""
    if not path.is_file():
        raise Refusal(f"{path}: expected a checkpoint, got no file; train without --resume first")
    wanted = f"{path}: expected a checkpoint of this trainer, got"
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, pickle.UnpicklingError, EOFError, OSError, ValueError) as error:
        raise Refusal(f"{wanted} a file that torch cannot load ({error})") from error
    missing = PARTS - set(state if isinstance(state, dict) else ())
    if missing:
        raise Refusal(f"{wanted} one without {', '.join(sorted(missing))}")
    if not isinstance(state["options"], dict) or "dataset" not in state["options"]:
        raise Refusal(f"{wanted} one whose options name no dataset")
    return dict(state)


def check(path: Path, state: dict[str, Any], options: Options, world: int) -> None:
    """Whether the run given is the one that was kept; each difference is named."""
    found = differences(state["options"], options)
    if len(state["chance"]) != world:
        found.append(f"processes: the checkpoint has {len(state['chance'])}, there are {world}")
    if found:
        told = "\n  ".join(found)
        raise Refusal(
            f"{path}: expected the options of its run, got {len(found)} that differ:\n  {told}\n"
            "give those of the checkpoint, or another --output"
        )
    if state["step"] > options.steps:
        raise Refusal(
            f"--steps: expected at least the {state['step']} that {path} has done, got "
            f"{options.steps}; evaluate scores it as it is"
        )


def images_of(benchmark: Benchmark) -> dict[str, list[Any]]:
    """{part: [number of images, digest]}, as a checkpoint has it."""
    return {name: list(told(images)) for name, images in benchmark.parts.items()}


def check_images(path: Path, state: dict[str, Any], given: dict[str, list[Any]]) -> None:
    """Whether the images given, which may lie elsewhere, are those of the run kept."""
    kept = state["images"]
    if kept == given:
        return
    found = []
    for name in dict.fromkeys([*kept, *given]):
        (had, digest), (has, other) = (some.get(name, (0, "")) for some in (kept, given))
        if (had, digest) != (has, other):
            names = " of other names or classes" if had == has else ""
            found.append(f"{name}: the checkpoint has {had} images, given were {has}{names}")
    listed = "\n  ".join(found)
    raise Refusal(
        f"--root: expected the images that {path} was trained and scored with, got others:\n  "
        f"{listed}\ngive the folder of those, or train on these with another --output"
    )


def fill(path: Path, state: dict[str, Any], name: str, part: Any) -> None:
    """Puts one part back where it was."""
    try:
        part.load_state_dict(state[name])
    except (RuntimeError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refusal(
            f"{path}: expected a {name} that fits this trainer's, got one that does not ({error}); "
            "it may be of another version, or the file of --backbone has changed"
        ) from error


def restore(path: Path, state: dict[str, Any], parts: dict[str, Any], rank: int) -> int:
    """Puts everything back where it was, and says at which step."""
    for name in STATES:
        fill(path, state, name, parts[name])
    torch.set_rng_state(state["chance"][rank]["cpu"])
    if "cuda" in state["chance"][rank] and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["chance"][rank]["cuda"])
    return int(state["step"])
