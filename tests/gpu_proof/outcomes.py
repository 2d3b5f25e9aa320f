"""pytest -p gpu_proof.outcomes: each test is written as it ends, so a run that is killed says what
passed, what failed and how, and at which tests it was.

The file is the environment's MSK_PROOF_RESULTS, the step MSK_PROOF_STEP. Of pytest-xdist only the
process that gathers the others' reports writes.
"""

import os
import signal
from pathlib import Path

import pytest

from bench.gpu_record import append

MOST_TEXT = 4000  # characters of a failure


def machine_on(path: Path) -> str:
    """The digest of the machine that the file began with."""
    from bench.gpu_record import read

    machines = [case["on"] for case in read(path) if case["kind"] == "machine"]
    return machines[-1] if machines else ""


class Outcomes:
    def __init__(self, path: Path, step: str) -> None:
        self.path, self.step, self.on = path, step, machine_on(path)
        self.running: dict[str, None] = {}
        signal.signal(signal.SIGTERM, self.cut_off)

    def add(self, test: str, outcome: str, **more: object) -> None:
        case = {"kind": "test", "on": self.on, "key": [self.step, test]}
        append(self.path, {**case, "outcome": outcome, **more})

    def cut_off(self, *_: object) -> None:
        for test in self.running:
            self.add(test, "cut off")
        os._exit(128 + signal.SIGTERM)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.running[nodeid] = None

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.when == "teardown":
            self.running.pop(report.nodeid, None)
        if report.when == "call" and report.passed:
            counted = {str(name): value for name, value in report.user_properties}
            more = {"counted": counted} if counted else {}
            self.add(report.nodeid, "passed", seconds=round(report.duration, 2), **more)
        elif report.failed:
            text = str(report.longreprtext)[-MOST_TEXT:]
            self.add(report.nodeid, "failed", when=report.when, text=text)
        elif report.skipped:
            why = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            self.add(report.nodeid, "skipped", why=str(why)[:300])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self.add(
                report.nodeid, "failed", when="collect", text=str(report.longreprtext)[-MOST_TEXT:]
            )


class Worker:
    """Of pytest-xdist: ends after a test that broke its CUDA context, as every test after it would
    fail too; another worker takes its place."""

    def __init__(self) -> None:
        self.failed = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.failed |= report.failed

    def pytest_runtest_logfinish(self) -> None:
        from bench.gpu_device import BROKEN, broken

        if self.failed and broken():
            os._exit(BROKEN)
        self.failed = False


def pytest_configure(config: pytest.Config) -> None:
    path = os.environ.get("MSK_PROOF_RESULTS")
    if path and hasattr(config, "workerinput"):
        config.pluginmanager.register(Worker())
    elif path:
        config.pluginmanager.register(Outcomes(Path(path), os.environ["MSK_PROOF_STEP"]))
