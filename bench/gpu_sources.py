"""Which sources a GPU result is of: those measured, those that the compiled modules were built of.

A compiled module does not follow its sources by itself: one that an earlier build left would be
measured under their name. So whoever puts modules into the package leaves a note beside them, of
what they were built and how the files themselves read; a module that the note does not describe is
of unknown sources. Imports no torch: a build machine may have none.
"""

import hashlib
import json
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ms_kernels"
CARRIED = ROOT / "build" / "gpu"  # what make gpu-build made for another machine
NOTE = "_modules.json"


def digest_of(paths: list[Path], root: Path = ROOT) -> str:
    found = hashlib.sha256()
    for path in sorted(paths):
        found.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes() + b"\0")
    return found.hexdigest()[:12]


def _compiled(root: Path) -> list[Path]:
    """All that a module is built from: the flags are in cmake/ as much as the kernels in csrc/."""
    below = [path for name in ("csrc", "cmake") for path in (root / name).rglob("*")]
    return [*(path for path in below if path.is_file()), root / "CMakeLists.txt"]


def built(root: Path = ROOT) -> str:
    """A digest of what the compiled modules are built from."""
    return digest_of(_compiled(root), root)


def measured(root: Path = ROOT) -> str:
    """A digest of what is measured: the package, all that is compiled, and this bench."""
    python = [*root.glob("ms_kernels/**/*.py"), *root.glob("bench/*.py")]
    return digest_of([*_compiled(root), *python], root)


def commit(root: Path = ROOT, carried: Path = CARRIED) -> dict[str, Any]:
    """The commit that is measured and whether tracked files differ from it; None: not known.

    A copy of the tree may have no repository, or one that stayed behind: what make gpu-build noted
    holds for the same files. Without a repository what differs from its note is a change too.
    """
    noted = [json.loads(path.read_text()) for path in sorted(carried.glob("*/manifest.json"))]
    noted = [manifest for manifest in noted if manifest.get("commit")]
    here = measured(root) if noted else None
    for manifest in noted:
        if manifest["measured"] == here:
            return {"commit": manifest["commit"], "changed": manifest["changed"]}
    if _git(root, "rev-parse", "--show-toplevel") == str(root.resolve()):
        status = _git(root, "status", "--porcelain", "--untracked-files=no")
        return {
            "commit": _git(root, "rev-parse", "--short", "HEAD"),
            "changed": None if status is None else bool(status),
        }
    if noted:
        return {"commit": noted[0]["commit"], "changed": True}
    return {"commit": None, "changed": None}


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True)
    except OSError:
        return None
    return None if done.returncode else done.stdout.strip()


def write_note(manifest: dict[str, Any], package: Path = PACKAGE) -> None:
    """Of the modules that lie in the package now; they have the manifest's suffix."""
    files = {path.name: _content(path) for path in sorted(package.glob(f"*{manifest['suffix']}"))}
    (package / NOTE).write_text(json.dumps({**manifest, "files": files}, indent=1) + "\n")


def note(package: Path = PACKAGE) -> dict[str, Any]:
    """What was noted of the package's modules; empty where nobody did."""
    try:
        found: dict[str, Any] = json.loads((package / NOTE).read_text())
    except (OSError, json.JSONDecodeError):
        return {}
    return found


def module_sources(module: Path) -> str | None:
    """The digest of what this file was built from, None if the note does not describe it."""
    known = note(module.parent)
    if known.get("files", {}).get(module.name) != _content(module):
        return None
    sources: str = known["sources"]
    return sources


def _content(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
