"""Decodes, detects and writes at the same time, in the order of the sources.

Threads decode and resize the images of the next batches while the network computes. On a CPU, the
network computes several batches at once, each with a part of the cores. One further thread writes
the results of earlier batches. Each queue is short, so memory does not grow with the number of
images.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from jaxtyping import UInt8

from multibox.commands.prediction.items import Fetch, ImageRef, VideoRef, read_pixels
from multibox.commands.prediction.selection import Selection
from multibox.commands.prediction.video import frames
from multibox.data.workers import one_ahead
from multibox.detector import DetectionList, Detector
from multibox.errors import MultiboxError
from multibox.hardware import usable_cores
from multibox.structures import Detections

_T = TypeVar("_T")
_R = TypeVar("_R")

# Addresses on the network answer late, so more of them are read at once than there are cores.
_MIN_THREADS = 4
_BATCHES_IN_WRITING = 2
# Each of them holds the activations of a batch.
_MAX_BATCHES_AT_ONCE = 4


class How(NamedTuple):
    """How images are detected.

    Attributes:
        selection: Which detections are kept.
        batch_size: Number of images that the network computes at once.
        flip: Whether the mirror image is used as well.
        fetch: Reads http(s) addresses.
        max_frames: Maximum number of frames of each video. None: all.
    """

    selection: Selection
    batch_size: int
    flip: bool
    fetch: Fetch
    max_frames: int | None = None


class Loaded(NamedTuple):
    """A decoded image or frame.

    Attributes:
        source: Where it is from.
        key: The name of its results, without suffix.
        pixels: RGB pixels. Empty if only `resized` is needed.
        resized: The network's input.
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        frame: Number of the frame in its video, or None.
        time_s: Time of the frame in seconds, or None.
    """

    source: ImageRef | VideoRef
    key: str
    pixels: UInt8[np.ndarray, "_ _ 3"]
    resized: UInt8[np.ndarray, "h w 3"]
    width: int
    height: int
    frame: int | None = None
    time_s: float | None = None


class Refused(NamedTuple):
    """An image that cannot be read, or a video from the place on where it cannot be read.

    Attributes:
        source: The image or video.
        error: What is wrong.
    """

    source: ImageRef | VideoRef
    error: MultiboxError


class Result(NamedTuple):
    """The detections in an image or frame.

    Attributes:
        image: The image.
        found: The detections with boxes in the unit frame.
        named: The same detections with class names and with boxes in pixels.
    """

    image: Loaded
    found: Detections
    named: DetectionList


def detect_sources(
    detector: Detector,
    sources: Sequence[tuple[ImageRef | VideoRef, str]],
    how: How,
) -> Iterator[list[Result | Refused]]:
    """Yields the results of images and videos in batches, in order.

    Args:
        detector: Detects the objects.
        sources: Images and videos, each with the name of its results.
        how: Settings.
    """
    # A frame of a live source is not held back until the next one is there.
    live = any(isinstance(source, VideoRef) and source.live for source, _ in sources)
    yield from detect_batches(detector, _batches(detector, sources, how), how, at_once=not live)


def _batches(
    detector: Detector, sources: Sequence[tuple[ImageRef | VideoRef, str]], how: How
) -> Iterator[list[Loaded | Refused]]:
    """Yields decoded images and frames. A batch has images only, or frames of one video."""
    place = 0
    while place < len(sources):
        source, key = sources[place]
        if isinstance(source, VideoRef):
            place += 1
            # Frames of a live source are not held back until a batch is full.
            size = 1 if source.live else how.batch_size
            yield from batched(_load_frames(detector, source, key, how), size)
            continue
        images = list[tuple[ImageRef, str]]()
        while place < len(sources) and isinstance(found := sources[place][0], ImageRef):
            images.append((found, sources[place][1]))
            place += 1
        loaded = map_ahead(
            lambda item: load_image(detector, item[0], item[1], how.fetch),
            images,
            ahead=2 * how.batch_size,
        )
        yield from batched(loaded, how.batch_size)


def load_image(
    detector: Detector, ref: ImageRef, key: str, fetch: Fetch, *, keep_pixels: bool = True
) -> Loaded | Refused:
    """Returns an image decoded and resized, or why it cannot be."""
    try:
        pixels = read_pixels(ref, fetch)
        resized = detector.prepare(pixels)
    except MultiboxError as error:
        return Refused(ref, error)
    height, width = pixels.shape[:2]
    return Loaded(ref, key, pixels if keep_pixels else pixels[:0], resized, width, height)


def _load_frames(
    detector: Detector, ref: VideoRef, key: str, how: How
) -> Iterator[Loaded | Refused]:
    try:
        for number, time_s, pixels in frames(ref, most=how.max_frames):
            height, width = pixels.shape[:2]
            resized = detector.prepare(pixels)
            yield Loaded(ref, key, pixels, resized, width, height, number, time_s)
    except MultiboxError as error:
        yield Refused(ref, error)


def detect_batches(
    detector: Detector,
    batches: Iterator[list[Loaded | Refused]],
    how: How,
    *,
    pad: bool = False,
    at_once: bool = True,
) -> Iterator[list[Result | Refused]]:
    """Yields the results of batches, in order.

    Threads that share one batch wait for each other after each layer, and the suppression uses only
    one of them. So on a CPU each thread computes batches of its own.

    Args:
        detector: Detects the objects.
        batches: Decoded images, and images that cannot be read. A thread makes the next batch.
        how: Settings.
        pad: Whether all batches have the same size (see `detect_loaded`).
        at_once: Whether several batches may be computed at once on a CPU. Then the results of a
            batch are yielded after the next batches are there.
    """
    ahead = one_ahead(batches)
    threads = torch.get_num_threads()
    count = min(threads, _MAX_BATCHES_AT_ONCE) if at_once and detector.uses_cpu_threads else 1
    first = list(islice(ahead, min(count, 2)))
    if len(first) < 2:
        for batch in chain(first, ahead):
            yield detect_loaded(detector, batch, how, pad=pad)
        return
    shares = iter([(threads + place) // count for place in range(count)])
    # PyTorch keeps the number of threads for each calling thread.
    pool = ThreadPoolExecutor(count, initializer=lambda: torch.set_num_threads(next(shares)))
    pending = deque[Future[list[Result | Refused]]]()
    try:
        for batch in chain(first, ahead):
            pending.append(pool.submit(detect_loaded, detector, batch, how, pad=pad))
            if len(pending) > count:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
        # For threads that start later.
        torch.set_num_threads(threads)


def detect_loaded(
    detector: Detector, batch: Sequence[Loaded | Refused], how: How, *, pad: bool = False
) -> list[Result | Refused]:
    """Returns the results of a batch, in order.

    Args:
        detector: Detects the objects.
        batch: Decoded images, and images that cannot be read.
        how: Settings.
        pad: Whether to fill the batch with blank images up to `how.batch_size`. Then the bits of a
            result do not depend on the other images of the batch.
    """
    loaded = [item for item in batch if isinstance(item, Loaded)]
    if not loaded:
        return [item for item in batch if isinstance(item, Refused)]
    inputs = [item.resized for item in loaded]
    if pad:
        inputs += [np.zeros_like(inputs[0])] * (how.batch_size - len(inputs))
    run = detector.detect_flipped if how.flip else detector.detect_batch
    detections = iter(run(inputs, score_threshold=how.selection.lowest))
    results: list[Result | Refused] = []
    for item in batch:
        if isinstance(item, Refused):
            results.append(item)
            continue
        found = how.selection.select(next(detections))
        results.append(Result(item, found, detector.name_in(found, item.width, item.height)))
    return results


def map_ahead(function: Callable[[_T], _R], items: Iterable[_T], *, ahead: int) -> Iterator[_R]:
    """Yields the results of a function in order. Threads compute the next `ahead` of them."""
    pool = ThreadPoolExecutor(max(_MIN_THREADS, usable_cores()))
    pending = deque[Future[_R]]()
    try:
        for item in items:
            pending.append(pool.submit(function, item))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def batched(items: Iterable[_T], size: int) -> Iterator[list[_T]]:
    """Yields lists of `size` items; the last one may be shorter."""
    iterator = iter(items)
    while batch := list(islice(iterator, size)):
        yield batch


class WriterThread:
    """Calls a function for each batch in one thread, in order, as a context manager.

    The caller waits if the thread is more than a few batches behind. An error in the thread is
    raised by the next call, or at the end.
    """

    def __init__(self, write: Callable[[list[Result | Refused]], None]) -> None:
        self._write, self._thread = write, ThreadPoolExecutor(1)
        self._pending = deque[Future[None]]()

    def put(self, batch: list[Result | Refused]) -> None:
        """Hands a batch over."""
        while len(self._pending) >= _BATCHES_IN_WRITING:
            self._pending.popleft().result()
        self._pending.append(self._thread.submit(self._write, batch))

    def __enter__(self) -> "WriterThread":
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self._thread.shutdown()
        if kind is None:
            for future in self._pending:
                future.result()
