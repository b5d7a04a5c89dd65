"""Processes that work ahead of the training process, and what happens when they do not.

They are PyTorch's loader's. Of itself that raises from a handler of SIGCHLD, in the middle of
whatever the training process does, fails in many ways where a worker dies while it hands over a
batch, and waits for ever for one that hangs or that died with a lock in its hands.
"""

import atexit
import ctypes
import math
import multiprocessing
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from threading import Event, Thread
from typing import Any, TypeAlias, TypeVar, cast

import cv2
import torch
from torch.utils.data import DataLoader

from multibox.errors import MultiboxError, WorkerError

T = TypeVar("T")

AHEAD = 2
"""Lists that each worker is given ahead."""

POLL_SECONDS = 1.0
"""How long it takes at most to notice that a worker died, once its batch is waited for."""

STUCK_SECONDS = 45.0
"""How long a batch may take before its worker is taken to hang."""

MAX_LOSSES = 4
"""How often workers may be lost at one batch."""

# glibc's `malloc.h`.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Linux's `prctl.h`.
_PR_SET_PDEATHSIG = 1

OnLoss: TypeAlias = Callable[[str, float], None]
"""Is told why workers are replaced, and for how many seconds they were waited for."""


def unsaid(_reason: str, _seconds: float) -> None:
    """Is told and says nothing."""


_AT_ONCE = "a process that prepares images was ended when it had hardly begun"


class _Lost(Exception):  # noqa: N818  # not an error until it happens again and again
    """A worker died or hangs; all of them were ended.

    Args:
        reason: What happened, as a clause.
        seconds: How long its batch was waited for.
    """

    def __init__(self, reason: str, seconds: float) -> None:
        super().__init__(reason, seconds)
        self.reason, self.seconds = reason, seconds


def work_ahead(
    examples: Any,
    join: Callable[[Sequence[Any]], T | MultiboxError],
    numbers: Iterable[list[Any]],
    *,
    workers: int,
    pin_memory: bool,
    files: Callable[[list[Any]], list[Path]],
    on_loss: OnLoss = unsaid,
) -> Iterator[T]:
    """Yields what becomes of lists of sample numbers.

    When a worker dies or hangs, one new worker makes what the lost ones had in hand, a list at a
    time, so that it is known at which it dies again; then there are as many as before. Samples are
    what they are, whoever makes them.

    Args:
        examples: Makes a sample of its number.
        join: Makes one of the samples of a list.
        numbers: The numbers of each list. They are taken ahead.
        workers: Processes that work ahead; 0: this one, on demand.
        pin_memory: Put tensors where a GPU copies them from without waiting.
        files: Returns the images of a list.
        on_loss: Is told why workers are replaced.

    Raises:
        MultiboxError: What `join` returned.
        WorkerError: Workers were lost `MAX_LOSSES` times at a list.
    """
    # Several images are in work at once instead of one image on several cores.
    cv2.setNumThreads(1)
    line, losses = iter(numbers), 0
    # What was taken of the line and not yet delivered.
    due = deque[list[Any]]()

    def taken() -> Iterator[list[Any]]:
        for item in line:
            due.append(item)
            yield item

    while True:
        again = bool(due)
        crew = 1 if again else workers
        loader = DataLoader(
            examples,
            batch_sampler=cast(Any, iter(tuple(due)) if again else taken()),
            num_workers=crew,
            # Whatever is Python's own choice: workers share what is in memory by then.
            multiprocessing_context="fork" if crew else None,
            prefetch_factor=(1 if again else AHEAD) if workers else None,
            collate_fn=join,
            pin_memory=pin_memory,
            generator=torch.Generator(),
            worker_init_fn=partial(_begin, os.getpid()),
            timeout=POLL_SECONDS if workers else 0,
        )
        try:
            for made in _made(loader):
                if isinstance(made, MultiboxError):
                    raise made
                due.popleft()
                losses = 0
                yield made
        except _Lost as loss:
            losses += 1
            if losses == MAX_LOSSES:
                names = ", ".join(str(path) for item in [*due][:1] for path in files(item))
                raise WorkerError(
                    f"{loss.reason}, {losses} times at the same batch. Its images are {names}",
                    remedy="If memory ran out, fewer --workers need less; --workers 0 shows "
                    "whether an image is to blame. The same line again resumes a training from "
                    "its last checkpoint",
                ) from None
            on_loss(loss.reason, loss.seconds)
        else:
            if not again:
                return


def _made(loader: DataLoader[Any]) -> Iterator[Any]:
    """Yields what a loader does, until a worker is lost, and leaves no worker behind."""
    if loader.num_workers == 0:
        yield from loader
        return
    others = multiprocessing.active_children()
    # In a list, so that its last reference can be given to a thread.
    items = [_begun(loader)]
    started = [child for child in multiprocessing.active_children() if child not in others]
    crew = _Crew(started, loader.num_workers)
    try:
        while True:
            try:
                item = crew.wait_for(items)
            except StopIteration:
                return
            yield item
    except _Lost:
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
        raise _Lost(_AT_ONCE, 0.0) from None
    finally:
        if signal.getsignal(signal.SIGCHLD) is not handler:
            signal.signal(signal.SIGCHLD, handler or signal.SIG_DFL)


def _begin(parent: int, _: int) -> None:
    """Leaves it to the training process to notice a signal that is meant for all of the run.

    Args:
        parent: The training process, without which a worker ends.
    """
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    keep_memory()
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL))
    # PyTorch looks every five seconds whether the parent is still the one that was there when it
    # first looked: not the training process any more, if that was killed while it made workers.
    if os.getppid() != parent:
        os._exit(1)


class _Crew:
    """The workers of a loader, and a thread that ends them when they hang.

    Args:
        children: Their processes.
        size: How many were started; some may have ended before they could be listed.
    """

    def __init__(self, children: Sequence[BaseProcess], size: int) -> None:
        self._children, self._size = children, size
        self._asked = math.inf
        self._hangs = False
        self._dismissed = Event()
        Thread(target=self._watch, daemon=True).start()
        # Python waits for the workers before it frees a generator that a traceback still holds.
        atexit.register(self.kill)

    def wait_for(self, items: Sequence[Iterator[T]]) -> T:
        """Returns the next of the only iterator.

        Raises:
            _Lost: A worker died or hangs.
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
                fate = self._fate(0.0 if late else POLL_SECONDS)
                if not fate and not late:
                    raise
            # Outside, because what the loader raised holds the loader.
            if fate:
                raise _Lost(fate, time.monotonic() - asked)

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
        return _AT_ONCE if len(self._children) < self._size else ""


def keep_memory() -> None:
    """Has glibc keep up to 64 MiB that this process frees, for its next images.

    Otherwise it returns an image's pages to the kernel at once and asks for them anew for the
    next one, which takes half as long as decoding does. Other libraries are left as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items, each but the first made while the one before is in use."""
    # Another thread would otherwise wake the first GPU, whichever this process uses.
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    start = None if device is None else lambda: torch.cuda.set_device(device)
    with ThreadPoolExecutor(1, initializer=start) as thread:
        # Here, for it starts the workers, whose end PyTorch only watches from the main thread.
        item = next(items, None)
        while item is not None:
            pending = thread.submit(next, items, None)
            yield item
            item = pending.result()
