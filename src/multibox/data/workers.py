"""PyTorch's loader, whose workers survive signals to the run and whose losses are an exception.

Of itself it raises from a handler of SIGCHLD, in the middle of whatever the training process does,
fails in many ways where a worker dies while it hands over a batch, and waits for ever for one that
hangs or that died with a lock in its hands.
"""

import atexit
import math
import multiprocessing
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from threading import Event, Thread
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
    ahead: int,
    pin_memory: bool,
) -> Iterator[T]:
    """Yields the collated batches of lists of numbers, in order.

    Args:
        examples: Makes an example of its number.
        numbers: The numbers of each batch. They are taken ahead.
        collate: Makes a batch of examples.
        workers: Processes that work ahead; 0: this one, on demand.
        ahead: Batches that each worker has in hand.
        pin_memory: Put the batches where a GPU copies them from without waiting.

    Raises:
        WorkersLost: A worker died or hangs.
    """
    loader = DataLoader(
        cast(Any, examples),
        batch_sampler=cast(Any, numbers),
        num_workers=workers,
        prefetch_factor=ahead if workers else None,
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
    crew = _Crew([child for child in multiprocessing.active_children() if child not in others])
    try:
        while True:
            try:
                item = crew.wait_for(items)
            except StopIteration:
                return
            yield item
    except WorkersLost:
        crew.kill()
        raise
    finally:
        if not sys.is_finalizing():
            # The loader may wait for a lock that a worker had when it died.
            end = Thread(target=items.clear, daemon=True)
            end.start()
            end.join(timeout=10)
        crew.dismiss()


def _begun(loader: DataLoader[Any]) -> Iterator[Any]:
    """Starts the workers, without PyTorch's handler of SIGCHLD."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        reason = "a process that prepares images was ended when it had hardly begun"
        raise WorkersLost(reason, 0.0) from None
    finally:
        if signal.getsignal(signal.SIGCHLD) is not handler:
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _begin(_: int) -> None:
    """Leaves it to the training process to notice a signal that is meant for all of the run."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


class _Crew:
    """The workers of a loader, and a thread that ends them when they hang.

    Args:
        children: Their processes.
    """

    def __init__(self, children: Sequence[BaseProcess]) -> None:
        self._children = children
        self._asked = math.inf
        self._hangs = False
        self._dismissed = Event()
        Thread(target=self._watch, daemon=True).start()
        # Python waits for the workers before it frees a generator that a traceback still holds.
        atexit.register(self.kill)

    def wait_for(self, items: Sequence[Iterator[T]]) -> T:
        """Returns the next of the only iterator.

        Raises:
            WorkersLost: A worker died or hangs.
            StopIteration: There is none.
        """
        self._asked = asked = time.monotonic()
        while True:
            try:
                item = next(items[0])
                self._asked = math.inf
                return item
            except StopIteration:
                raise
            except Exception as error:
                late = str(error).startswith("DataLoader timed out")
                fate = self._fate(0 if late else POLL_SECONDS)
                if not fate and not late:
                    raise
            # Outside, because what the loader raised holds the loader.
            if fate:
                raise WorkersLost(fate, time.monotonic() - asked)

    def kill(self) -> None:
        """Ends them at once; they have nothing to lose."""
        for child in self._children:
            child.kill()
        for child in self._children:
            child.join()

    def dismiss(self) -> None:
        """Leaves nothing behind."""
        self._dismissed.set()
        self.kill()
        atexit.unregister(self.kill)

    def _watch(self) -> None:
        while not self._dismissed.wait(POLL_SECONDS):
            if time.monotonic() - self._asked > STUCK_SECONDS:
                # The training process may be reading from one of them.
                self._hangs = True
                for child in self._children:
                    child.kill()
                return

    def _fate(self, seconds: float) -> str:
        """Returns what has happened, or happens within some seconds; nothing if nothing does."""
        ended = wait([child.sentinel for child in self._children], timeout=seconds)
        if self._hangs:
            return f"the processes that prepare images hang: no batch in {STUCK_SECONDS:.0f} s"
        for child in self._children:
            if child.sentinel in ended:
                # Its end shows a little before its status can be read.
                child.join()
                code = child.exitcode or 0
                end = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
                return f"a process that prepares images was ended {end}"
        return ""
