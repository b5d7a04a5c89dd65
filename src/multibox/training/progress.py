"""What a person sees while a run trains: a live line on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class Interval(NamedTuple):
    """What the steps since the last journal line took.

    Attributes:
        seconds: Of training, without validation and the like.
        images_per_second: Over all processes.
        data_wait: The part of the time in which the network waited for images, 0..1.
    """

    seconds: float
    images_per_second: float
    data_wait: float


class ProgressDisplay:
    """Shows how far a run is.

    Args:
        console: Where to; silent on all processes but the first.
        total: The run's steps.
        done: The steps made before it was resumed.
        images_per_step: Over all processes.
        every: Steps between two plain lines where there is no terminal.
    """

    def __init__(
        self, console: Console, *, total: int, done: int, images_per_step: int, every: int
    ) -> None:
        self._console = console
        self._total, self._images, self._every = total, images_per_step, every
        self.restart(done)
        # 80 columns must do.
        self._progress = Progress(
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            BarColumn(bar_width=None),
            TextColumn("{task.description}"),
            console=console,
            transient=True,
            refresh_per_second=4,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task("starting", total=total, completed=done)

    def __enter__(self) -> "ProgressDisplay":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def restart(self, step: int) -> None:
        """Counts anew from a step that the run is at, having begun or gone back."""
        self._first, self._start = step, time.monotonic()
        self._paused = self._waited = 0.0
        self._last = (step, 0.0, 0.0)

    @contextmanager
    def busy(self, what: str) -> Iterator[Callable[[], float]]:
        """Says what the run does besides training; that time does not count as training's.

        Yields what returns the seconds since then.
        """
        before = time.monotonic()
        self._progress.update(self._task, description=what)
        yield lambda: time.monotonic() - before
        self._paused += time.monotonic() - before

    def interval(self, step: int) -> Interval:
        """Returns what the steps since the last call took."""
        seconds, waited = self.training_time(), self._waited
        last_step, last_seconds, last_waited = self._last
        self._last = step, seconds, waited
        duration = max(1e-9, seconds - last_seconds)
        rate = (step - last_step) * self._images / duration
        return Interval(duration, rate, (waited - last_waited) / duration)

    def update(
        self, step: int, confidence: float, localization: float, *, lr: float, waited: float
    ) -> None:
        """Shows a step that was made.

        Args:
            step: Steps made so far.
            confidence: That part of its loss.
            localization: The other part.
            lr: Its learning rate.
            waited: Seconds it waited for its images.
        """
        self._waited += waited
        seconds = max(1e-9, self.training_time())
        left = (self._total - step) * seconds / (step - self._first)
        rate = (step - self._first) * self._images / seconds
        text = (
            f"loss {confidence:.2f}+{localization:.2f}  lr {lr:.1e}  {rate:.0f} img/s  "
            f"wait {self._waited / seconds:.0%}  {timedelta(seconds=round(left))}"
        )
        self._progress.update(self._task, completed=step, description=text)
        if not self._console.is_terminal and step % self._every == 0:
            self._console.print(f"step {step}/{self._total}  {text} left", highlight=False)

    def training_time(self) -> float:
        """Returns the seconds of training since the run began, was resumed or went back."""
        return time.monotonic() - self._start - self._paused
