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


def end_at_once() -> None:
    """Lets Ctrl-C end the process without a word: it is ending already."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Signals:
    """Notes a signal while its context lasts; one that was ignored, as by `nohup`, stays so.

    Args:
        repeated: Whoever starts several processes may send a signal twice and mean it once.

    Attributes:
        received: The signal's number; 0 for none yet.
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
