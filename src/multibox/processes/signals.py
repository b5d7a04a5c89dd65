"""Signals that stop a run: the first one after the current step, a second one immediately."""

import os
import signal
import time
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ECHO_SECONDS = 2.0
"""A repetition within this time is ignored: after a scheduler has sent a signal to all processes,
torchrun sends the same signal to its own processes again."""


class Interrupted(Exception):  # noqa: N818  # not an error
    """A signal has stopped the run, and its state is saved.

    Args:
        number: The number of the signal.
        step: The number of completed steps.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(number, step)
        self.number, self.step = number, step


def end_at_once() -> None:
    """Makes Ctrl-C end the process without a traceback. It is about to end anyway."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Signals:
    """Records the first signal that arrives while the context lasts.

    Signals that are ignored already, as under `nohup`, stay ignored.

    Args:
        repeated: Whether to ignore a repetition within `ECHO_SECONDS`.

    Attributes:
        received: The number of the first signal; 0 if none has arrived.
    """

    def __init__(self, *, repeated: bool = False) -> None:
        self.received = 0
        self._patience = ECHO_SECONDS if repeated else 0.0
        self._first = 0.0

    def __enter__(self) -> "Signals":
        found = {number: signal.getsignal(number) for number in CAUGHT}
        self._before = {n: handler for n, handler in found.items() if handler != signal.SIG_IGN}
        for number in self._before:
            signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self.received:
            self.received, self._first = number, time.monotonic()
        elif number == self.received and time.monotonic() - self._first >= self._patience:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
