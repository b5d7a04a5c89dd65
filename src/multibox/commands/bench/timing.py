"""Times works in turn, again and again.

All figures are medians of interleaved runs in one process, after one run that is not counted.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

RUNS = 5
"""Of each work; several times as many of one that takes milliseconds."""


class Figure(NamedTuple):
    """What some work took.

    Attributes:
        name: The work.
        seconds: The median.
        images: How many it was done for.
        ratio: Its rate over that of the figure which it is to be compared with.
        beside: The name of that figure.
        worker_mib: The most memory that a worker had to itself, in MiB.
    """

    name: str
    seconds: float
    images: int
    ratio: float | None = None
    beside: str | None = None
    worker_mib: float | None = None

    @property
    def per_second(self) -> float:
        """Images per second."""
        return self.images / self.seconds


class Measured(NamedTuple):
    """What a work has measured itself.

    Attributes:
        seconds: How long the part of it took that counts.
        worker_mib: As in `Figure`.
    """

    seconds: float
    worker_mib: float | None = None


class Work(NamedTuple):
    """Something to be timed.

    Attributes:
        name: For people.
        run: Does it; may return what it has `Measured`, or else is timed as a whole.
        images: How many it is done for.
        beside: The name of the work to compare it with.
    """

    name: str
    run: Callable[[], object]
    images: int
    beside: str | None = None


def timed(works: Sequence[Work], device: torch.device, *, times: int = 1) -> list[Figure]:
    """Returns a figure for each work, of so many times `RUNS`."""
    found: dict[str, list[Measured]] = {work.name: [] for work in works}
    for run in range(times * RUNS + 1):
        for work in works:
            start = time.perf_counter()
            result = work.run()
            if device.type == "cuda":
                torch.cuda.synchronize()
            if not isinstance(result, Measured):
                result = Measured(time.perf_counter() - start)
            if run:
                found[work.name].append(result)
    seconds = {name: statistics.median(run.seconds for run in runs) for name, runs in found.items()}
    rates = {work.name: work.images / seconds[work.name] for work in works}
    return [
        Figure(
            work.name,
            seconds[work.name],
            work.images,
            rates[work.name] / rates[work.beside] if work.beside else None,
            work.beside,
            max((run.worker_mib for run in found[work.name] if run.worker_mib), default=None),
        )
        for work in works
    ]
