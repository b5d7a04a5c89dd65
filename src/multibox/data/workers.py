"""Processes that prepare samples ahead of the training process.

A *list* is the request for one batch: the numbers of its samples, or one object that holds them.
Worker i of W gets lists i, i + W, i + 2W, ... through a pipe of its own and answers them in order.
Workers share no lock and no queue, so a worker that dies or hangs does not block the others. If a
worker dies, its pipe closes; if it hangs, the training process kills it after a time limit. In both
cases, the training process starts a new worker with the same lists. PyTorch's `DataLoader` cannot
replace a worker.
"""

import ctypes
import multiprocessing
import os
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count, cycle, islice
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from multiprocessing.util import Finalize
from pathlib import Path
from threading import Lock, Timer
from typing import Any, TypeAlias, TypeVar

import cv2
import torch
from torch import Tensor

from multibox.errors import MultiboxError, WorkerError

T = TypeVar("T")

AHEAD = 2
"""Number of lists that each worker has been given and has not answered."""

STUCK_SECONDS = 45.0
"""If the training process waits longer than this for a worker, the worker counts as hanging."""

MAX_LOSSES = 4
"""The run ends when it has lost this many workers at the same list."""

_FORKING = Lock()

# From glibc's `malloc.h`.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

OnLoss: TypeAlias = Callable[[str, float], None]
"""Called with the reason why a worker is replaced, and the seconds that it was waited for."""


def ignore_loss(_reason: str, _seconds: float) -> None:
    """Does nothing when a worker is lost."""


def work_ahead(
    examples: Any,
    join: Callable[[Sequence[Any]], T | MultiboxError],
    numbers: Iterable[list[Any]],
    *,
    workers: int,
    pin_memory: bool,
    files: Callable[[list[Any]], list[Path]],
    on_loss: OnLoss = ignore_loss,
) -> Iterator[T]:
    """Yields `join([examples[n] for n in item])` for each item of `numbers`, in order.

    The results do not depend on the number of workers or on how many of them are lost.

    Args:
        examples: Makes a sample from an entry of a list, usually its number: `examples[number]`.
        join: Combines the samples of a list. It returns a `MultiboxError` instead of raising it.
        numbers: The lists, taken `AHEAD` lists ahead for each worker.
        workers: The number of processes. With 0, this process prepares each list on demand.
        pin_memory: Whether to copy tensors into pinned memory.
        files: Returns the image files of a list, for the error message.
        on_loss: Is called before a worker is replaced (see `OnLoss`).

    Raises:
        MultiboxError: The one that `join` returned.
        WorkerError: `MAX_LOSSES` workers were lost at the same list.
    """
    # The processes work on different images at the same time, so each needs one thread only.
    cv2.setNumThreads(1)

    def make(item: list[Any]) -> T | MultiboxError:
        return join([examples[number] for number in item])

    crew: list[_Worker] = []
    try:
        for _ in range(workers):
            crew.append(_Worker(make))
        for made in _answers(crew, iter(numbers), files, on_loss) if crew else map(make, numbers):
            if isinstance(made, Exception):
                raise made
            yield _pinned(made) if pin_memory else made
    finally:
        for worker in crew:
            worker.end()


def _answers(
    crew: list["_Worker"],
    lists: Iterator[list[Any]],
    files: Callable[[list[Any]], list[Path]],
    on_loss: OnLoss,
) -> Iterator[Any]:
    for worker, item in zip(crew * AHEAD, lists, strict=False):
        worker.give(item)
    for place in cycle(range(len(crew))):
        for losses in count(1):
            worker, asked = crew[place], time.monotonic()
            if not worker.in_hand:
                return
            try:
                made = worker.answer()
                break
            except (EOFError, OSError):
                seconds = time.monotonic() - asked
                reason = worker.end(hangs=seconds >= STUCK_SECONDS)
            if losses == MAX_LOSSES:
                names = ", ".join(map(str, files(worker.in_hand[0])))
                raise WorkerError(
                    f"{reason}, {losses} times at the same batch. Its images are {names}",
                    remedy="If the memory was full, use fewer --workers. To see whether an image "
                    "is the cause, use --workers 0. The same command line continues from the last "
                    "checkpoint",
                )
            on_loss(reason, seconds)
            crew[place] = _Worker(worker.make, worker.in_hand)
        for item in islice(lists, 1):
            worker.give(item)
        yield made


class _Worker:
    """A process that answers lists with `make(list)`, in order.

    Args:
        make: Prepares a list. It is called in the new process.
        in_hand: Lists to give to the process as soon as it has started.

    Attributes:
        in_hand: The lists that it was given and has not answered.
    """

    def __init__(self, make: Callable[[list[Any]], Any], in_hand: Iterable[list[Any]] = ()) -> None:
        self.make, self.in_hand = make, deque[list[Any]]()
        # Forked processes share the memory of this one. Python 3.14 has another default.
        fork = multiprocessing.get_context("fork")
        # If another thread forked a process now, that process would have a copy of `its_end`, and
        # this pipe would stay open after the death of this worker.
        with _FORKING:
            self._pipe, its_end = fork.Pipe()
            self._process = fork.Process(target=self._serve, args=(its_end,))
            self._process.start()
            its_end.close()
        # A traceback may keep the generator, and so this object, alive until Python exits. Python
        # then waits for all child processes, so this one is killed before that.
        Finalize(self, self._process.kill, exitpriority=0)
        for item in in_hand:
            self.give(item)

    def give(self, item: list[Any]) -> None:
        """Adds a list to those in hand."""
        self.in_hand.append(item)
        # If the process has died, `answer` says so.
        with suppress(OSError):
            self._pipe.send(item)

    def answer(self) -> Any:
        """Returns the answer to the first list in hand.

        Raises:
            EOFError, OSError: The process has died, or was killed because it hangs.
        """
        # The time limit includes the transfer: a process can stop in the middle of its answer.
        limit = Timer(STUCK_SECONDS, self._process.kill)
        try:
            limit.start()
            made = self._pipe.recv()
        finally:
            limit.cancel()
        self.in_hand.popleft()
        return made

    def end(self, *, hangs: bool = False) -> str:
        """Kills the process and returns how it ended, as a clause."""
        self._pipe.close()
        self._process.kill()
        self._process.join()
        if hangs:
            return f"a process that prepares images seems to hang: no batch in {STUCK_SECONDS:g} s"
        code = self._process.exitcode or 0
        how = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        return f"a process that prepares images was ended {how}"

    def _serve(self, pipe: Connection) -> None:
        # The training process handles the signals that are sent to the whole run.
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # The pipe must close when the training process dies. Workers that were started
        # later have copies of its other end, too, but they end before this one.
        self._pipe.close()
        torch.set_num_threads(1)
        keep_memory()
        # Send tensors by value. PyTorch would send a reference to shared memory, and this process
        # would have to live until the tensor is received.
        ForkingPickler.register(Tensor, lambda tensor: (torch.from_numpy, (tensor.numpy(),)))
        try:
            while True:
                item = pipe.recv()
                try:
                    made = self.make(item)
                except Exception:
                    made = RuntimeError(f"images cannot be prepared\n{traceback.format_exc()}")
                pipe.send(made)
        except (EOFError, OSError):
            # The training process is gone. Its exit handlers must not run in this copy of it.
            os._exit(0)


def _pinned(made: Any) -> Any:
    """Returns a tensor, or a tuple with tensors in it, in pinned memory."""
    if isinstance(made, Tensor):
        return made.pin_memory()
    if isinstance(made, tuple):
        items = map(_pinned, made)
        return type(made)(*items) if hasattr(made, "_fields") else tuple(items)
    return made


def keep_memory() -> None:
    """Makes glibc keep up to 64 MiB of freed memory for the next images of this process.

    By default, glibc returns the pages of each image to the kernel and asks for new ones for the
    next image. That takes half as long as decoding. Other C libraries stay as they are.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_TRIM_THRESHOLD, 64 << 20)
        mallopt(_M_MMAP_THRESHOLD, 32 << 20)


def one_ahead(items: Iterator[T]) -> Iterator[T]:
    """Yields the same items. A thread makes the next one while the caller uses the current one."""
    # Without this, the thread would use the first GPU, even if this process uses another one.
    device = torch.cuda.current_device() if torch.cuda.is_available() else None
    start = None if device is None else lambda: torch.cuda.set_device(device)
    with ThreadPoolExecutor(1, initializer=start) as thread:
        # The calling thread makes the first item, and starts the workers with it.
        item = next(items, None)
        while item is not None:
            pending = thread.submit(next, items, None)
            yield item
            item = pending.result()
