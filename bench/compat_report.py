"""Table of what one changed import line brings, from a result file of `python -m bench compat`."""

from typing import Any

from bench.baselines import PEER
from bench.report import mebibytes


def table(found: dict[str, Any]) -> str:
    """Markdown: milliseconds and MiB of both, and how many times longer the library takes."""
    machine = found["machine"]
    lines = [
        f"One training step (loss and gradient), float32, {machine['threads']} threads of "
        f"{machine['cpu']}, torch {machine['torch']}, pytorch-metric-learning "
        f"{machine['pytorch_metric_learning']}, {machine['date']}, commit {machine['commit']}. "
        "One line of each script is changed: its import. Medians of interleaved rounds, the ratio "
        "that of the ratios of single rounds; peak resident memory beyond the embeddings and "
        "their gradient.",
        "",
        "| script | N | D | import changed | as it was | times longer | memory | its memory |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["compat"]:
        ours, peer = row["times"]["ours"], row["times"][PEER]
        memory = " | ".join(mebibytes(row["bytes"][who]) for who in ("ours", PEER))
        lines.append(
            f"| {row['set_up']} | {row['n']} | {row['d']} | {ours['step'] * 1e3:.2f} ms | "
            f"{peer['step'] * 1e3:.1f} ms | {peer['ratio']:.1f}x | {memory} |"
        )
    return "\n".join(lines)
