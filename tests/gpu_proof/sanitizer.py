"""Steps "memcheck", "racecheck", "synccheck", "initcheck": compute-sanitizer on the CUDA kernels.

What it says is read as it comes, so that what it found before it was cut off is known.
"""

import argparse
import re
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from gpu_proof.on_cpu import started

from bench import gpu_machine

TOOLS = ("memcheck", "racecheck", "synccheck", "initcheck")
SUMMARY = re.compile(
    r"========= (?:ERROR|RACECHECK) SUMMARY: (\d+) (?:errors?|hazards?)"
    r"(?: displayed \((\d+) errors?, (\d+) warnings?\))?"
)
# A finding is a line of this mark with one blank, then indented lines that say where.
FINDING = re.compile(
    r"^========= (?!COMPUTE-SANITIZER|ERROR SUMMARY|RACECHECK SUMMARY|LEAK SUMMARY)(\S.*)"
)
WHERE = re.compile(r"^========= {2,}(\S.*)")
MOST_FINDINGS = 20
# Of ours alone, by their mangled names: torch's would take most of the time, and a hazard in one of
# them is no finding of ours. initcheck must see torch's too, for they write what ours read.
OURS = ["--kernel-name", "kernel_substring=_ZN3msk"]


def read(lines: Iterable[str]) -> Iterator[tuple[str, Any]]:
    """("case", what runs), ("finding", its lines), ("summary", errors) as the output says them."""
    finding: list[str] = []
    for line in lines:
        text = line.rstrip()
        if finding and WHERE.match(text):
            finding.append(WHERE.match(text)[1])  # type: ignore[index]
            continue
        if finding:
            yield "finding", finding
            finding = []
        if found := SUMMARY.search(text):
            yield "summary", int(found[2] if found[2] is not None else found[1])
        elif found := FINDING.match(text):
            finding = [found[1]]
        elif text.startswith("case "):
            yield "case", text.removeprefix("case ")
    if finding:
        yield "finding", finding


def shown(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        print(line, end="", flush=True)
        yield line


def command_of(tool: str) -> list[str]:
    chosen = [] if tool == "initcheck" else OURS
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1", *chosen]
    return [*command, *started("sanitize_kernels"), "--backends", "cuda", "--short"]


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m gpu_proof.sanitizer", description=__doc__)
    parser.add_argument("tool", choices=TOOLS)
    parser.add_argument("--results", type=Path, required=True, help="a file of JSON lines")
    options = parser.parse_args(arguments)
    record = gpu_machine.record(options.results)
    command = command_of(options.tool)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert process.stdout is not None
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    errors, findings, cases = None, 0, 0
    for kind, what in read(shown(process.stdout)):
        if kind == "case":
            cases += 1
            record.add("sanitizer", (options.tool, what), {"tool": options.tool, "case": what})
        elif kind == "finding":
            findings += 1
            if findings <= MOST_FINDINGS:
                record.add(
                    "finding", (options.tool, findings), {"tool": options.tool, "text": what}
                )
        else:
            errors = what
    code = process.wait()
    said = "no summary" if errors is None else f"{errors} errors"
    print(f"{options.tool}: {said}, {findings} findings in {cases} cases, ended with {code}")
    return int(code != 0 or errors != 0 or cases == 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
