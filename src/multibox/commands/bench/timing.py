"""Times works in turn, several times each.

Each figure is the median of runs in one process. The runs of all works are interleaved, so that a
disturbance meets all of them, and one run before does not count.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

RUNS = 5
"""Runs of each work. Works of milliseconds have a multiple of it."""


class Figure(NamedTuple):
    """The time that a work took.

    Attributes:
        name: The work.
        seconds: The median.
        images: The number of images that it worked on.
        ratio: Its rate over the rate of the work to compare it with.
        beside: The name of that other work.
    """

    name: str
    seconds: float
    images: int
    ratio: float | None = None
    beside: str | None = None

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds


class Work(NamedTuple):
    """Something to time.

    Attributes:
        name: For people.
        run: Does the work. It may return the seconds that count; a result of any other type means
            that all of it counts.
        images: The number of images that it works on.
        beside: The name of the work to compare it with, which comes before it.
    """

    name: str
    run: Callable[[], object]
    images: int
    beside: str | None = None


def timed(works: Sequence[Work], device: torch.device, *, times: int = 1) -> list[Figure]:
    """Returns a figure for each work, from `times` * `RUNS` runs."""
    found: dict[str, list[float]] = {work.name: [] for work in works}
    for run in range(times * RUNS + 1):
        for work in works:
            start = time.perf_counter()
            result = work.run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            seconds = result if isinstance(result, float) else time.perf_counter() - start
            if run:
                found[work.name].append(seconds)
    figures: dict[str, Figure] = {}
    for work in works:
        figure = Figure(work.name, statistics.median(found[work.name]), work.images)
        if work.beside is not None:
            ratio = figure.per_second / figures[work.beside].per_second
            figure = figure._replace(ratio=ratio, beside=work.beside)
        figures[work.name] = figure
    return list(figures.values())
