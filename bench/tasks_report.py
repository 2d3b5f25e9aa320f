"""Table of place recognition, CLIP and SigLIP, from a result file of `python -m bench tasks`."""

from typing import Any

from bench.baselines import PEER
from bench.report import mebibytes
from bench.tasks import SLOW

OTHERS = {"dense": "dense", "compiled": "compiled", PEER: "pytorch-metric-learning"}
NOT_YET = "Not measured yet: `python -m bench tasks` does it, in 16 minutes on a busy machine."


def table(found: dict[str, Any]) -> str:
    """Markdown: our milliseconds, how many times longer the others take, and MiB of each."""
    machine = found["machine"]
    busy = machine.get("load", 0) > 0.5
    load = f", busy with other jobs (load {machine['load']} when it began)" if busy else ""
    lines = [
        f"One training step (loss and gradient), {machine['threads']} threads of "
        f"{machine['cpu']}{load}, torch {machine['torch']}, pytorch-metric-learning "
        f"{machine['pytorch_metric_learning']}, {machine['date']}, commit {machine['commit']}. "
        "Place recognition has eight images a place, alpha 1, beta 50, base 0 and a mining slack "
        "of 0.1, which keeps about 5% of the negatives, and reads in every step which share of the "
        "anchors keeps a pair; CLIP and SigLIP have a scale that learns, SigLIP a bias too. Half "
        "rows are computed in float32 by ms_kernels, in half by the others. Medians of interleaved "
        "rounds, ratios those of single rounds; a step of more than "
        f"{SLOW} s is taken once, in a process of its own, and said to be. Peak resident memory "
        "beyond the rows and their gradient. Dense is plain PyTorch, compiled torch.compile of it.",
        "",
        "| step | dtype | N | D | ms_kernels | " + " | ".join(OTHERS.values()) + " | memory | "
        "of dense | of compiled | of pytorch-metric-learning |",
        "|---|---|--:|--:|--:|" + "--:|" * (2 * len(OTHERS) + 1),
    ]
    for row in found["tasks"]:
        times = row["times"]
        ratios = (ratio(times[k]) if k in times else "" for k in OTHERS)
        memory = (mebibytes(row["bytes"].get(k)) for k in ("ours", *OTHERS))
        lines.append(
            f"| {row['task']} | {row['dtype']} | {row['n']} | {row['d']} | "
            f"{times['ours']['step'] * 1e3:.1f} ms | {' | '.join((*ratios, *memory))} |"
        )
    return "\n".join(lines)


def ratio(times: dict[str, Any]) -> str:
    once = " (once)" if times["step"] > SLOW else ""
    return f"{times['ratio']:.1f}x{once}"
