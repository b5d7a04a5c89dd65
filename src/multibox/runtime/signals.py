"""Signals that ask a run to stop: the first one ends it after its step, a second one at once."""

import os
import signal
import time
from types import FrameType

CAUGHT = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

ECHO_SECONDS = 2.0
"""A scheduler signals to every process, torchrun then to its own once more: that is one signal."""


class Interrupted(Exception):  # noqa: N818  # not an error: the run was asked to stop, and did
    """A signal stopped the run after its state was saved.

    Args:
        number: The signal's.
        step: Where the run stands.
    """

    def __init__(self, number: int, step: int) -> None:
        super().__init__(number, step)
        self.number, self.step = number, step


class Signals:
    """Notes a signal while its context lasts.

    Attributes:
        received: The signal's number; 0 for none yet.
    """

    def __init__(self) -> None:
        self.received = 0
        self._first = 0.0

    def __enter__(self) -> "Signals":
        self._before = [signal.signal(number, self._note) for number in CAUGHT]
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in zip(CAUGHT, self._before, strict=True):
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self.received:
            self.received, self._first = number, time.monotonic()
        elif time.monotonic() - self._first > ECHO_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
