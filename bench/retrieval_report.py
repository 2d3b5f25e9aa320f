"""Tables of the ablation and of its cost, from a result file of `python -m bench retrieval`."""

import statistics
from typing import Any

from bench.baselines import PEER
from bench.report import mebibytes

LAST = "MS"


def table(found: dict[str, Any]) -> str:
    return ablation_table(found) + "\n\n" + cost_table(found)


def ablation_table(found: dict[str, Any]) -> str:
    from bench.retrieval import ROWS, UNTRAINED

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
    runs: dict[str, dict[int, Any]] = {}
    for row in found["retrieval"]:
        runs.setdefault(row["member"], {})[row["seed"]] = row
    for name in (UNTRAINED, *ROWS):
        follows = ROWS[name][0] if name in ROWS else ""
        cells = [name, follows]
        for measure in ("recall_at_1", "map_at_r"):
            values = {seed: 100 * row[measure] for seed, row in runs[name].items()}
            last = {seed: 100 * row[measure] for seed, row in runs[LAST].items()}
            cells.append(spread(list(values.values())))
            beside = [value - last[seed] for seed, value in values.items()]
            cells.append("" if name == LAST else spread(beside))
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cost_table(found: dict[str, Any]) -> str:
    machine = found["machine"]
    lines = [
        "One step of the trainer, forward and backward pass of the network, loss and Adam, "
        f"D = 128, {machine['threads']} threads of {machine['cpu']} "
        f"({machine['instruction_set']}, load {machine['load']} when it began), torch "
        f"{machine['torch']}, pytorch-metric-learning {machine['pytorch_metric_learning']}. "
        "Medians of interleaved steps, the ratio that of single rounds; the peak is that of loss and "
        "gradient alone.",
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
