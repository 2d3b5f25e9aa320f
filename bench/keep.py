"""Where a benchmark writes what it found, and what it shows of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ms_kernels.tools.command_line import check_output

RESULTS = Path(__file__).parent / "results"


def keep(
    name: str,
    machine: dict[str, Any],
    quick: bool,
    measure: Callable[[], dict[str, Any]],
    table: Callable[[dict[str, Any]], str],
) -> None:
    """Measures, writes and publishes; a quick run takes a name that bench.tables never reads."""
    path = RESULTS / (f"quick-{name}.json" if quick else f"{name}-{machine['date']}.json")
    path.parent.mkdir(exist_ok=True)
    check_output(f"bench {name}", "results", path)  # before minutes of work, not after
    found = {"machine": machine, **measure()}
    path.write_text(json.dumps(found, indent=1) + "\n")
    print(f"\nresults: {path}\n\n{table(found)}")
    if not quick:
        from bench import tables

        tables.publish()
