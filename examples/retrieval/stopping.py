"""How a run ends before its last step: by a signal, after everything was saved."""

import signal
from typing import Any

SIGNALS = signal.SIGINT, signal.SIGTERM


class Stopped(Exception):
    """By the user, after everything was saved."""


class StopSignal:
    """The first Ctrl-C, or request to terminate, ends the loop after its step."""

    def __enter__(self) -> "StopSignal":
        self.came = False
        self.before = {s: signal.signal(s, self._note) for s in SIGNALS}
        return self

    def _note(self, number: int, frame: Any) -> None:
        if self.came and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.came = True

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)


def leave_signals(_: int) -> None:
    """Of a worker that decodes images: a signal for the whole group, as a terminal and a batch
    system send it, would end it and take the batch at hand with it. It ends with its process."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
