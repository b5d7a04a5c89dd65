"""Processes that work ahead of the training process."""

import ctypes
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar, cast

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from multibox.errors import MultiboxError

AHEAD = 2
"""Lists that each worker is given ahead."""

# glibc's `malloc.h`.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3

T = TypeVar("T")


def work_ahead(
    examples: Dataset[Any],
    join: Callable[[Sequence[Any]], T | MultiboxError],
    numbers: Iterable[list[Any]],
    *,
    workers: int,
    pin_memory: bool,
) -> Iterator[T]:
    """Yields what becomes of lists of sample numbers.

    Args:
        examples: Makes a sample of its number.
        join: Makes one of the samples of a list.
        numbers: The numbers of each list.
        workers: Processes that work ahead; 0: this one, on demand.
        pin_memory: Put tensors where a GPU copies them from without waiting.

    Raises:
        MultiboxError: What `join` returned.
    """
    # Several images are in work at once instead of one image on several cores.
    cv2.setNumThreads(1)
    loader = DataLoader(
        cast(Any, examples),
        batch_sampler=numbers,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        collate_fn=join,
        pin_memory=pin_memory,
        generator=torch.Generator(),
        worker_init_fn=_begin_worker,
    )
    for batch in loader:
        if isinstance(batch, MultiboxError):
            raise batch
        yield batch


def _begin_worker(_: int) -> None:
    """Leaves it to the training process to notice signals, and lets it end this one.

    Ctrl-C, torchrun and job schedulers signal to all of a group; the batches that the step under
    way needs are still to be made then.
    """
    os.setsid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    keep_memory()


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
