"""The kernels through Triton's own launcher, without a GPU: the tests of tests/launcher/.

They want a process of their own: here Triton is the interpreter, and no kernel meets the launcher.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
pytest.importorskip("triton.backends.nvidia")

HERE = Path(__file__).parent


@pytest.mark.slow
def test_under_the_stand_in_driver(tmp_path):
    """In one process, for kernels of one test are those of another too; the rehearsal of `make gpu`
    names one file by LAUNCHER_TESTS."""
    path = os.pathsep.join(map(str, (HERE.parent, HERE, HERE / "launcher")))
    environment = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
        **{"STAND_IN_DRIVER": "ttir", "TRITON_INTERPRET": "0", "PYTHONPATH": path},
        "TRITON_CACHE_DIR": str(tmp_path),  # of kernels that are not finished
    }
    # Without the options that plugins bring, which a GPU machine may lack.
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, HERE / "launcher" / os.environ.get("LAUNCHER_TESTS", "")],
        env=environment,
        cwd=HERE.parent,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    assert re.fullmatch(r"\d+ passed in .*", done.stdout.strip().splitlines()[-1])
