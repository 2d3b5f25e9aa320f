"""One step as a process group of its own, with a time limit; what it printed is kept."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

# Between the asking and the killing: a test run then says which tests it was at.
GRACE = 3.0
# A process that waits for a broken driver can outlive its killing; nobody waits longer for it.
LAST = 5.0


class Ended(NamedTuple):
    code: int | None  # None: not even killing ended it
    killed: bool
    seconds: float


def run(
    command: Sequence[str], limit: float, log: Path, where: Path, environment: Mapping[str, str]
) -> Ended:
    """The group is killed at the limit, and once its first process has ended: a server or worker
    that was left behind would hold the GPU's memory."""
    start = time.monotonic()
    process = subprocess.Popen(
        list(command),
        cwd=where,
        env=dict(environment),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    killed = False
    try:
        with log.open("ab") as file:
            killed = not copy(process, start + limit, file)
            if killed:
                text = f"\n[killed after {limit:.0f} s]\n"
                signal_group(process, signal.SIGTERM)
                copy(process, time.monotonic() + GRACE, file)
                file.write(text.encode())
    finally:  # also when this process is interrupted
        signal_group(process, signal.SIGKILL)
        if process.stdout is not None:
            process.stdout.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(LAST)
    return Ended(process.returncode, killed, time.monotonic() - start)


def copy(process: "subprocess.Popen[bytes]", until: float, file) -> bool:  # type: ignore[no-untyped-def]
    """Its output to the log and the screen; whether the process ended in time.

    A child that it left behind may hold the pipe open, so the process is asked too.
    """
    assert process.stdout is not None
    out = process.stdout.fileno()
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([out], [], [], min(left, 0.2))
        part = os.read(out, 1 << 16) if ready else b""
        if part:
            file.write(part)
            file.flush()
            sys.stdout.write(part.decode(errors="replace"))
            sys.stdout.flush()
        elif process.poll() is not None:
            return True
        elif ready:  # the pipe is closed, the process goes on
            time.sleep(0.05)
    return process.poll() is not None


def signal_group(process: "subprocess.Popen[bytes]", number: int) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)
