"""What users write type-checks, README's Python and the examples, by mypy --strict and pyright."""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MISSING = "{} is not installed: pip install -e '.[test]'"


def needs(module):
    absent = importlib.util.find_spec(module) is None
    return pytest.mark.skipif(absent, reason=MISSING.format(module))


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """README's blocks in their order, as one file, since later ones use what earlier ones import;
    and the examples."""
    folder = tmp_path_factory.mktemp("typed")
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text(), re.M | re.S)
    assert len(blocks) >= 5
    (folder / "readme.py").write_text("\n\n".join(blocks))
    for example in (ROOT / "examples").glob("*.py"):
        (folder / example.name).write_text(example.read_text())
    return folder


@needs("mypy")
@pytest.mark.slow
def test_mypy(sources):
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file="]
    command += ["--cache-dir", ROOT / ".mypy_cache" / "users", "--follow-imports=silent"]
    done = subprocess.run(
        [*command, "--disable-error-code=import-untyped", *sources.glob("*.py")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs("pyright")
@pytest.mark.slow
def test_pyright(sources):
    config = {
        "include": [str(path) for path in sources.glob("*.py")],
        "extraPaths": [str(ROOT)],
        "pythonVersion": "3.10",
        "reportMissingModuleSource": False,
        "reportMissingTypeStubs": False,
    }
    (sources / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable]
    done = subprocess.run(
        [*command, "--project", sources / "pyrightconfig.json"],
        cwd=sources,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr


@needs("mypy")
@pytest.mark.slow
def test_a_wrong_option_shows(tmp_path):
    wrong = tmp_path / "wrong.py"
    wrong.write_text(
        "import ms_kernels\n"
        "ms_kernels.NTXentLoss(temperatur=0.1)\n"
        'ms_kernels.NTXentLoss(reduction="mean", backend=3)\n'
        "ms_kernels.MultiSimilarityLoss(alpha='2')\n"
    )
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", wrong]
    command += ["--cache-dir", ROOT / ".mypy_cache" / "users", "--follow-imports=silent"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert re.findall(r"wrong\.py:(\d)", done.stdout) == ["2", "3", "4"], done.stdout
