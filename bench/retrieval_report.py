"""Tables and picture of the ablation and its cost, from a result file of `python -m bench
retrieval`."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from bench import report
from bench.baselines import PEER
from bench.report import mebibytes
from ms_kernels.tools.plot_style import COLORS, finish

UNTRAINED, LAST = "untrained", "MS"
# Which similarities the weight of a pair follows: its own (S), those of the anchor's other
# negatives (N), those of its positives (P).
FOLLOWS = {
    UNTRAINED: "",
    "binomial": "S",
    "lifted structure": "N",
    "MS mining alone": "P",
    "BinLifted": "S+N",
    "MS weighting": "S+N",
    "binomial + MS mining": "S+P",
    "lifted + MS mining": "N+P",
    LAST: "S+N+P",
}


def table(found: dict[str, Any]) -> str:
    return ablation_table(found) + "\n\n" + cost_table(found)


def ablation_table(found: dict[str, Any]) -> str:
    machine, images = found["machine"], found["images"]
    lines = [
        f"Percent, mean ± standard deviation of {found['seeds']} seeds, {found['steps']} steps of "
        f"16 classes x 5; trained on {images['train']:,} images of {images['train_classes']} "
        f"characters, measured on {images['test']:,} of {images['test_classes']} others. "
        f"torch {machine['torch']}, {machine['date']}, commit {machine['commit']}.",
        "",
        "| | follows | Recall@1 | Recall@1 minus MS | MAP@R | MAP@R minus MS |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for name, follows in FOLLOWS.items():
        cells = [name, follows]
        for measure in ("recall_at_1", "map_at_r"):
            values, last = of_seeds(found, measure, name), of_seeds(found, measure, LAST)
            cells.append(spread(list(values.values())))
            beside = [value - last[seed] for seed, value in values.items()]
            cells.append("" if name == LAST else spread(beside))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def of_seeds(found: dict[str, Any], measure: str, name: str) -> dict[int, float]:
    """{seed: percent} of a member."""
    rows = [row for row in found["retrieval"] if row["member"] == name]
    return {row["seed"]: 100 * row[measure] for row in rows}


def cost_table(found: dict[str, Any]) -> str:
    machine = found["machine"]
    threads = f"{machine['threads']} thread" + "s" * (machine["threads"] > 1)
    lines = [
        "One step of the trainer, forward and backward pass of the network, loss and Adam, "
        f"D = 128, {threads} of {machine['cpu']} ({machine['instruction_set']}, load "
        f"{machine['load']} when it began), torch {machine['torch']}, pytorch-metric-learning "
        f"{machine['pytorch_metric_learning']}, {machine['date']}. Medians of interleaved steps, "
        "the ratio that of the ratios of single rounds; the peak is that of loss and gradient "
        "alone.",
        "",
        "| batch | a step | with pytorch-metric-learning | times longer | memory of the loss | its "
        "memory |",
        "|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["costs"]:
        ours, theirs = (1e3 * row["seconds"][who] for who in ("ours", PEER))
        memory = " | ".join(mebibytes(row["bytes"][who]) for who in ("ours", PEER))
        lines.append(
            f"| {row['n']:,} | {ours:.1f} ms | {theirs:.1f} ms | {row['ratio']:.2f}x | {memory} |"
        )
    return "\n".join(lines)


def spread(values: list[float]) -> str:
    """Mean ± standard deviation."""
    found = f"{statistics.mean(values):.1f}"
    return found + (f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else "")


def plot(found: dict[str, Any], path: Path) -> None:
    """A dot for each seed, a bar for their mean."""
    members = [name for name in FOLLOWS if name != UNTRAINED][::-1]
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    measures = {"recall_at_1": "Recall@1 (%)", "map_at_r": "MAP@R (%)"}
    for ax, (measure, title) in zip(
        figure.subplots(1, 2, sharey=True), measures.items(), strict=True
    ):
        for place, name in enumerate(members):
            values = list(of_seeds(found, measure, name).values())
            color = COLORS[1] if name == LAST else COLORS[0]
            ax.plot(values, [place] * len(values), "o", color=color, alpha=0.45, markersize=6)
            ax.plot([statistics.mean(values)], [place], "|", color=color, markersize=18)
        ax.set_yticks(range(len(members)), [f"{name} ({FOLLOWS[name]})" for name in members])
        ax.set_xlabel(title)
        ax.grid(axis="x", alpha=0.3)
        finish(ax)
    report.save(figure, path, found)
