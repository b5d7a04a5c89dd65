"""PyTorch's loader, whose workers survive signals to the run and whose losses are an exception.

Of itself it raises from a handler of SIGCHLD, in the middle of whatever the training process does,
and waits for ever for a worker that hangs or that died with a lock in its hands.
"""

import atexit
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from multiprocessing.process import BaseProcess
from threading import Thread
from typing import Any, TypeVar, cast

import torch
from torch.utils.data import DataLoader

T = TypeVar("T")

POLL_SECONDS = 1.0
"""How long it takes at most to notice that a worker died, once its batch is waited for."""

STUCK_SECONDS = 45.0
"""How long a batch may take before its worker is taken to hang."""


class WorkersLost(Exception):  # noqa: N818  # not an error until it happens again and again
    """A worker died or hangs; all of them were ended.

    Args:
        reason: What happened, as a clause.
        seconds: How long its batch was waited for.
    """

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason, seconds)
        self.reason, self.seconds = reason, seconds


def made_by_workers(
    examples: Any,
    numbers: Iterator[list[int]],
    collate: Callable[[Sequence[Any]], T],
    *,
    workers: int,
    pin_memory: bool,
) -> Iterator[T]:
    """Yields the collated batches of lists of numbers, in order.

    Args:
        examples: Makes an example of its number.
        numbers: The numbers of each batch. They are taken ahead.
        collate: Makes a batch of examples.
        workers: Processes that work ahead; 0: this one, on demand.
        pin_memory: Put the batches where a GPU copies them from without waiting.

    Raises:
        WorkersLost: A worker died or hangs.
    """
    loader = DataLoader(
        cast(Any, examples),
        batch_sampler=cast(Any, numbers),
        num_workers=workers,
        collate_fn=collate,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        worker_init_fn=_begin,
        timeout=POLL_SECONDS if workers else 0,
    )
    if workers == 0:
        yield from loader
        return
    others = multiprocessing.active_children()
    # In a list, so that its last reference can be given to a thread.
    items = [_begun(loader)]
    crew = [child for child in multiprocessing.active_children() if child not in others]
    # Python waits for the workers before it frees a generator that a traceback still holds.
    kill = partial(_kill, crew)
    atexit.register(kill)
    try:
        while True:
            try:
                item = _next(items, crew)
            except StopIteration:
                return
            yield item
    except WorkersLost:
        kill()
        raise
    finally:
        if not sys.is_finalizing():
            # The loader may wait for a lock that a worker had when it died.
            end = Thread(target=items.clear, daemon=True)
            end.start()
            end.join(timeout=10)
        kill()
        atexit.unregister(kill)


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """Starts the workers, without PyTorch's handler of SIGCHLD."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    except RuntimeError as error:
        raise WorkersLost(str(error), 0.0) from None
    finally:
        if signal.getsignal(signal.SIGCHLD) is not handler:
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _next(items: Sequence[Iterator[T]], crew: Sequence[BaseProcess]) -> T:
    """Returns the next batch, or raises what `made_by_workers` and the end of an iterator do."""
    asked = time.monotonic()
    while True:
        try:
            return next(items[0])
        except RuntimeError as error:
            if not str(error).startswith("DataLoader"):
                raise
        waited = time.monotonic() - asked
        reason = _loss(crew, waited)
        if reason:
            raise WorkersLost(reason, waited)


def _loss(crew: Sequence[BaseProcess], waited: float) -> str:
    """Returns what happened to the workers; nothing if there is still hope."""
    for child in crew:
        code = child.exitcode
        if code is not None and code < 0:
            name = signal.Signals(-code).name
            return f"a process that prepares images was ended by {name}"
        if code is not None:
            return f"a process that prepares images ended with status {code}"
    if waited > STUCK_SECONDS:
        return f"the processes that prepare images hang: no batch in {waited:.0f} seconds"
    return ""


def _kill(crew: Sequence[BaseProcess]) -> None:
    for child in crew:
        child.kill()
    for child in crew:
        child.join()


def _begin(_: int) -> None:
    """Leaves it to the training process to notice a signal that is meant for all of the run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
