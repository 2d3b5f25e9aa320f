"""What users write, as files that type checkers read: python tests/users.py FOLDER"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def write_sources(folder):
    """README's blocks in their order, as one file, since later ones use what earlier ones import;
    and the examples."""
    folder.mkdir(parents=True, exist_ok=True)
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) >= 5
    (folder / "readme.py").write_text("\n\n".join(blocks))
    for example in (ROOT / "examples").glob("[!_]*.py"):
        (folder / example.name).write_text(example.read_text())


if __name__ == "__main__":
    write_sources(Path(sys.argv[1]))
