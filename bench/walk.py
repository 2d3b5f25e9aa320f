"""python -m bench walk [quick]: the training of docs/retrieval.md, and its picture."""

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from bench.keep import keep

PICTURE = Path(__file__).parent.parent / "docs" / "retrieval_neighbours.png"
STEPS = 1000


def measure(quick: bool) -> dict[str, Any]:
    """What the trainer wrote; of a long run its picture goes to docs."""
    with tempfile.TemporaryDirectory() as folder:
        steps = 2 if quick else STEPS
        command = [sys.executable, "-m", "examples.retrieval", "train", "--dataset", "glyphs"]
        command += ["--steps", str(steps), "--output", folder, "--device", "cpu"]
        subprocess.run(command, check=True)
        found = json.loads((Path(folder) / "results.json").read_text())
        if not quick:
            shutil.copyfile(Path(folder) / "neighbours.png", PICTURE)
    found["options"] = {**found["options"], "output": None}
    return {"walk": found}


def text(found: dict[str, Any]) -> str:
    """Markdown: scores, and what they cost."""
    walk, machine = found["walk"], found["machine"]
    scores, losses = walk["scores"], walk["losses"]
    threads = f"{machine['threads']} thread" + "s" * (machine["threads"] > 1)
    seconds = walk["seconds_a_step"] * walk["step"]
    return "\n".join(
        [
            "| " + " | ".join(scores) + " |",
            "|" + "--:|" * len(scores),
            "| " + " | ".join(f"{value:.1f}" for value in scores.values()) + " |",
            "",
            f"Percent of {walk['queries']:,} queries after {walk['step']:,} steps, of "
            f"{1e3 * walk['seconds_a_step']:.0f} ms each, {seconds / 60:.1f} minutes beside "
            f"drawing and scoring, on {threads} of {machine['cpu']}, load {machine['load']} when "
            f"it began; torch {machine['torch']}, {machine['date']}, commit {machine['commit']}. "
            f"The loss went from {losses[0][1]:.2f} at step {losses[0][0]} to {losses[-1][1]:.2f}.",
            "",
            f"![Nearest neighbours of some queries]({PICTURE.name})",
        ]
    )


def run(machine: dict[str, object], quick: bool) -> None:
    keep("walk", machine, quick, lambda: measure(quick), text)
