"""The results of a GPU: a file of JSON lines, one a case, added whole as it is found.

A process that is killed loses the case it was at and no other. Each line has the kind of its case,
a key that names it within its kind, and in "on" a digest of what it was measured on; the line of
kind "machine" with the same digest says that in words.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

Case = dict[str, Any]
Key = tuple[Any, ...]
# Cases are of one run where these are the same.
SAME = ("gpu", "driver", "torch", "triton", "cuda", "sources")


class Record:
    def __init__(self, path: Path, machine: Case) -> None:
        self.path = path
        self.on = digest(*(str(machine[name]) for name in SAME))
        self.known = set()
        self.errors: dict[tuple[str, Key], int] = {}
        for case in read(path):
            if case["on"] == self.on:
                self._note(case)
        if not self.has("machine", ()):
            self.add("machine", (), machine)

    def has(self, kind: str, key: Iterable[Any]) -> bool:
        """Whether the case was found before, of the same sources on the same machine.

        One that ended with an error is tried once more: the error may have been another's.
        """
        name = kind, tuple(key)
        return name in self.known or self.errors.get(name, 0) > 1

    def add(self, kind: str, key: Iterable[Any], found: Case) -> Case:
        case = {"kind": kind, "on": self.on, "key": list(key), **found}
        append(self.path, case)
        self._note(case)
        return case

    def _note(self, case: Case) -> None:
        name = case["kind"], tuple(case["key"])
        if "error" in case:
            self.errors[name] = self.errors.get(name, 0) + 1
        else:
            self.known.add(name)

    def cases(self, kind: str) -> list[Case]:
        return [
            case
            for case in latest(read(self.path))
            if case["on"] == self.on and case["kind"] == kind
        ]


def append(path: Path, case: Case) -> None:
    """One write of a whole line, on the disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(case, default=str) + "\n"
    with path.open("a+b") as file:
        if file.tell():
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":  # a killed process left half a line
                text = "\n" + text
        file.write(text.encode())
        file.flush()
        os.fsync(file.fileno())


def read(path: Path) -> list[Case]:
    """The cases of a file in the order they were found; a line cut short is none."""
    found = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            case = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(case, dict) and {"kind", "on", "key"} <= set(case):
            found.append(case)
    return found


def latest(cases: Iterable[Case]) -> list[Case]:
    """Of cases with the same name the last one, in the order of the first."""
    found: dict[tuple[Any, ...], Case] = {}
    for case in cases:
        found[(case["on"], case["kind"], *map(str, case["key"]))] = case
    return list(found.values())


def digest(*texts: str) -> str:
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:12]
