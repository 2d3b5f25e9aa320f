"""Tables and plot of docs/scaling.md, from results of the benches memory and distributed."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
from matplotlib.axes import Axes

from bench.baselines import PEER
from bench.report import COLORS, mebibytes, save

NAMES = {"ours": "ms_kernels", PEER: "pytorch-metric-learning"}
DASHES = {64: "--", 256: "-"}
KINDS = {"strong": "#0072B2", "weak": "#D55E00"}  # two of Okabe and Ito's palette, as in report.py


def _machine(found: dict[str, Any]) -> str:
    machine = found["machine"]
    busy = machine.get("load", 0) > 0.5
    load = f", busy with other jobs (load {machine['load']} when it began)" if busy else ""
    return f"{machine['cpu']} ({machine['instruction_set']}){load}, torch {machine['torch']}"


def memory_table(found: dict[str, Any]) -> str:
    """Markdown: milliseconds and MiB of both, and how many times longer the peer takes."""
    machine, shape = found["machine"], found["shape"]
    waits = " that wait passively" if machine.get("wait_policy") == "passive" else ""
    lines = [
        f"One training step (loss and gradient), float32, D = {shape['d']}, {shape['per_class']} "
        f"samples a class, {machine['threads']} threads{waits} of {_machine(found)}, "
        f"pytorch-metric-learning {machine['pytorch_metric_learning']}, {machine['date']}, commit "
        f"{machine['commit']}. Medians of interleaved rounds, the ratio that of the ratios of "
        "single rounds, with its quartiles; peak resident memory of a step beyond the rows in "
        "memory, the batch and its gradient.",
        "",
        "| rows in memory | batch | negatives kept | ms_kernels | pytorch-metric-learning | times "
        "longer | quartiles | memory | its memory |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in found["memory"]:
        ours, peer = row["times"]["ours"], row["times"][PEER]
        memory = " | ".join(mebibytes(row["bytes"][who]) for who in ("ours", PEER))
        lines.append(
            f"| {row['size']:,} | {row['batch']} | {row['kept']:.1%} | {_ms(ours['step'])} | "
            f"{_ms(peer['step'])} | {peer['ratio']:.1f}x | {peer['ratio_low']:.1f} to "
            f"{peer['ratio_high']:.1f} | {memory} |"
        )
    return "\n".join(lines)


def distributed_table(found: dict[str, Any]) -> str:
    """Markdown: time of a step, bytes of one process, its peak memory."""
    machine, shape, rows = found["machine"], found["shape"], found["distributed"]
    lines = [
        f"One training step (loss and gradient), float32, D = {shape['d']}, {shape['per_class']} "
        f"samples a class, processes of gloo with one thread each on the {machine['cores']} cores "
        f"of {_machine(found)}, {machine['date']}, commit {machine['commit']}. Time: the slowest "
        "process's median, of passes over all cases the median, and their range; CPU: what a "
        "process computes in a step, without waiting; bytes: the tensors given to the collectives "
        "of a forward and backward pass; peak resident memory of a process beyond its rows and "
        "their gradient.",
        "",
        "| scaling | processes | schedule | rows of all | rows of each | step | passes | CPU | CPU "
        "beside one process | a process gives | receives | memory |",
        "|---|--:|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for kind in KINDS:
        chosen = _of_kind(rows, kind)
        alone = next((row["work"] for row in chosen if row["world"] == 1), None)
        for row in chosen:
            sent = [*row["forward"], *row["backward"]]
            given, received = (sum(one[what] for one in sent) for what in ("given", "received"))
            shares = "*" if row["world"] > machine["cores"] else ""
            schedule = row["schedule"] if row["world"] > 1 else ""
            beside = "" if alone is None else f"{row['work'] / alone:.2f}x"
            lines.append(
                f"| {kind} | {row['world']}{shares} | {schedule} | {row['n']:,} | "
                f"{row['n'] // row['world']:,} | {_ms(row['step'])} | {1e3 * row['low']:.1f} to "
                f"{1e3 * row['high']:.1f} ms | {_ms(row['work'])} | {beside} | {given:,} B | "
                f"{received:,} B | {mebibytes(row['bytes'])} |"
            )
    if any(row["world"] > machine["cores"] for row in rows):
        lines += ["", f"\\* More processes than the {machine['cores']} cores: they share them."]
    return "\n".join(lines)


def _of_kind(rows: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    chosen = (row for row in rows if kind in row["kinds"])
    return sorted(chosen, key=lambda row: (row["world"], row["schedule"]))


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def plot(found: Mapping[str, dict[str, Any] | None], path: Path) -> None:
    """Time and memory beside a memory's size, and time beside the number of processes."""
    figure, (time, memory, scaling) = plt.subplots(1, 3, figsize=(13, 4.4), layout="constrained")
    if (one := found["memory"]) is not None:
        _of_memory(time, one["memory"], lambda row, who: 1e3 * row["times"][who]["step"])
        # Below a tenth of a MiB resident memory counts pages, not the loss.
        _of_memory(memory, one["memory"], lambda row, who: max(0.1, row["bytes"][who] / 2**20))
    time.set(title="CrossBatchMemory: time", ylabel="training step (ms)")
    memory.set(title="CrossBatchMemory: memory", ylabel="peak of a step beyond its rows (MiB)")
    handles, labels = time.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower left", ncols=2, frameon=False)
    if (one := found["distributed"]) is not None:
        _of_processes(scaling, one)
        handles, labels = scaling.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower right", ncols=2, frameon=False)
    scaling.set(title="DistributedLoss: time", xlabel="processes, one thread each")
    scaling.set_ylabel("training step (ms)")
    save(figure, path, dict(found))


def _of_memory(axes: Axes, rows: list[dict[str, Any]], value: Any) -> None:
    sizes = sorted({row["size"] for row in rows})
    for who, name in NAMES.items():
        for batch, dash in DASHES.items():
            chosen = [row for row in rows if row["batch"] == batch]
            if None in (row["bytes"][who] for row in chosen) or not chosen:
                continue
            points = [(row["size"], value(row, who)) for row in chosen]
            wide = 2.6 if who == "ours" else 1.6
            label = f"{name}, batch of {batch}"
            style = {"color": COLORS[who], "lw": wide, "label": label}
            axes.plot(*zip(*points, strict=True), f"o{dash}", **style)
    axes.set(xscale="log", yscale="log", xlabel="rows in memory (D = 128)")
    axes.set_xticks(sizes, [f"{size:,}" for size in sizes])
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


def _of_processes(axes: Axes, found: dict[str, Any]) -> None:
    rows = found["distributed"]
    worlds, cores = sorted({row["world"] for row in rows}), found["machine"]["cores"]
    for kind, color in KINDS.items():
        chosen = [row for row in _of_kind(rows, kind) if row["schedule"] == "gather"]
        at, steps = [r["world"] for r in chosen], [1e3 * r["step"] for r in chosen]
        ranges = [[1e3 * abs(r["step"] - r[end]) for r in chosen] for end in ("low", "high")]
        each = f"{chosen[0]['n']:,} rows" + (" of each" if kind == "weak" else " of all")
        label = f"{kind}: {each}"
        axes.errorbar(at, steps, ranges, fmt="o-", color=color, capsize=3, lw=2, label=label)
        work = [1e3 * r["work"] for r in chosen]
        axes.plot(
            at, work, "o:", color=color, mfc="white", label=f"{kind}: CPU time of one of them"
        )
    if cores < worlds[-1]:
        axes.axvspan(cores * 1.05, worlds[-1] * 1.1, color="#999999", alpha=0.15, lw=0)
        axes.text(
            (cores * 1.05 * worlds[-1] * 1.1) ** 0.5,
            0.03,
            f"they share {cores} cores",
            transform=axes.get_xaxis_transform(),
            ha="center",
            va="bottom",
            color="#555555",
        )
    axes.set_xscale("log", base=2)
    axes.set_xticks(worlds, [str(world) for world in worlds])
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)


TABLES = {"memory": memory_table, "distributed": distributed_table}
