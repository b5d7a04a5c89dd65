"""Shows the progress of a training: a progress bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import NamedTuple

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn


class Interval(NamedTuple):
    """Duration and speed of the steps since the last log line.

    Attributes:
        seconds: Seconds of training, without validation, evaluation and checkpoints.
        images_per_second: Images per second, over all processes.
        data_wait: Share of the time in which the network waited for images, 0..1.
    """

    seconds: float
    images_per_second: float
    data_wait: float


class ProgressDisplay:
    """Shows the progress of a run.

    Args:
        console: Where to print. It is quiet on all processes except the first.
        total: Number of steps of the run.
        done: Number of steps that were made before the run was resumed.
        images_per_step: Images per step, over all processes.
        every: Number of steps between two plain lines, if the console is not a terminal.
    """

    def __init__(
        self, console: Console, *, total: int, done: int, images_per_step: int, every: int
    ) -> None:
        self._console = console
        self._total, self._images, self._every = total, images_per_step, every
        self.restart(done)
        # It must fit into 80 columns.
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
        """Restarts the measurement at a step, after a start or a rollback."""
        self._first, self._start = step, time.monotonic()
        self._paused = self._waited = 0.0
        self._last = (step, 0.0, 0.0)

    @contextmanager
    def busy(self, activity: str) -> Iterator[Callable[[], float]]:
        """Shows an activity other than training. Its time does not count as training time.

        Yields:
            A function that returns the seconds since the activity began.
        """
        before = time.monotonic()
        self._progress.update(self._task, description=activity)
        yield lambda: time.monotonic() - before
        self._paused += time.monotonic() - before

    def interval(self, step: int) -> Interval:
        """Returns duration and speed of the steps since the last call."""
        seconds, waited = self.training_time(), self._waited
        last_step, last_seconds, last_waited = self._last
        self._last = step, seconds, waited
        duration = max(1e-9, seconds - last_seconds)
        rate = (step - last_step) * self._images / duration
        return Interval(duration, rate, (waited - last_waited) / duration)

    def update(
        self, step: int, confidence: float, localization: float, *, lr: float, waited: float
    ) -> None:
        """Shows a completed step.

        Args:
            step: Number of completed steps.
            confidence: Confidence loss of the step.
            localization: Localization loss of the step.
            lr: Learning rate of the step.
            waited: Seconds that the step waited for its images.
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
        """Returns the seconds of training since the last start, resume or rollback."""
        return time.monotonic() - self._start - self._paused
