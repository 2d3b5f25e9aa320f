"""What users write type-checks by pyright, README's Python and the examples; what is wrong shows.
`make lint` has mypy --strict read the same."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
from users import write_sources

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("pyright") is None,
    reason="pyright is not installed: pip install -e '.[test]'",
)
WRONG = """import ms_kernels
ms_kernels.NTXentLoss(temperatur=0.1)
ms_kernels.NTXentLoss(reduction="mean", backend=3)
ms_kernels.MultiSimilarityLoss(alpha="2")
ms_kernels.PairLoss(ms_kernels.NTXent(), epsilon=0.1)
"""


@pytest.mark.slow
def test_what_is_right_passes_and_what_is_wrong_shows(tmp_path):
    write_sources(tmp_path)
    (tmp_path / "wrong.py").write_text(WRONG)
    config = {"include": ["."], "extraPaths": [str(ROOT)], "pythonVersion": "3.10"}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "pyright", "--pythonpath", sys.executable, "--outputjson"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] >= 5, done.stderr
    errors = {
        (Path(error["file"]).name, error["range"]["start"]["line"] + 1): error["message"]
        for error in found["generalDiagnostics"]
        if error["severity"] == "error"
    }
    assert set(errors) == {("wrong.py", line) for line in (2, 3, 4, 5)}, errors
