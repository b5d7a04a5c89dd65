"""Decodes images in threads, and detects objects in all images that wait, one batch at a time.

An image that arrives while nothing waits is detected at once. While the network computes, further
images gather, and the next batch takes them. Nothing waits for a batch to become full.
"""

import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from threading import Condition, Thread
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from multibox.commands.prediction.selection import Selection
from multibox.commands.service.limits import Busy
from multibox.commands.service.metrics import Metrics
from multibox.data.images import decode_image
from multibox.detector import DetectionList, Detector
from multibox.hardware import usable_cores

_MAX_THREADS = 8
# Pixels times scans. A progressive JPEG is decoded once per scan; typical ones have ten. The other
# formats take as long as that. A photograph of 12 million pixels is light in each format.
_HEAVY = 200_000_000
_USUAL_SCANS = 10


class Limits(NamedTuple):
    """How much is taken at once.

    Attributes:
        batch_size: Number of images that the network computes at once.
        waiting: Number of images that may be decoded, wait or be computed at one time.
    """

    batch_size: int
    waiting: int


class Found(NamedTuple):
    """The objects in one image.

    Attributes:
        width: Width of the image in pixels.
        height: Height of the image in pixels.
        detections: The objects.
        seconds: Duration of the parts `decode`, `queue` and `network`.
    """

    width: int
    height: int
    detections: DetectionList
    seconds: dict[str, float]


class _Image:
    """An image from its upload to its result.

    The encoded image is given up as soon as it is decoded or nobody waits for the result.
    """

    def __init__(self, data: bytes, selection: Selection) -> None:
        self.data, self.selection = data, selection
        self.future = Future[Found]()
        self.future.add_done_callback(self._release)
        self.resized: UInt8[np.ndarray, "h w 3"] | None = None
        self.width = self.height = 0
        self.decode_seconds = self.decoded_at = 0.0

    def _release(self, _: Future[Found]) -> None:
        self.data, self.resized = b"", None


class Batcher:
    """Detects objects in images that several threads hand over.

    Images that take long to decode have a thread and a limit of their own, so that a few of them do
    not hold up the others.

    Args:
        detector: Detects the objects.
        limits: How much is taken at once.
        metrics: Counts images and seconds.
    """

    def __init__(self, detector: Detector, limits: Limits, metrics: Metrics) -> None:
        self._detector, self._limits, self._metrics = detector, limits, metrics
        threads = min(_MAX_THREADS, max(2, usable_cores()))
        self._pools = ThreadPoolExecutor(threads, "decode"), ThreadPoolExecutor(1, "decode-heavy")
        self._most = limits.waiting, max(1, limits.waiting // 8)
        self._unfinished = [0, 0]
        self._decoded = deque[_Image]()
        self._changed, self._closing = Condition(), False
        self._worker = Thread(target=self._work, name="network", daemon=True)
        self._worker.start()

    @property
    def waiting(self) -> int:
        """Number of images that are being decoded, wait or are being computed."""
        return sum(self._unfinished)

    @property
    def alive(self) -> bool:
        """Whether images are still detected."""
        return self._worker.is_alive()

    def submit(self, data: bytes, size: tuple[int, int], selection: Selection) -> Future[Found]:
        """Hands an image over. A future that is cancelled takes no more time.

        Args:
            data: The encoded image.
            size: Its (width, height) in pixels, from its header.
            selection: Which detections are kept.

        Returns:
            The objects, or the `DataError` of an image that cannot be decoded.

        Raises:
            Busy: Too many images wait.
        """
        lane = int(_cost(data, size) > _HEAVY)
        with self._changed:
            if self._closing or self._unfinished[lane] >= self._most[lane]:
                raise Busy
            self._unfinished[lane] += 1
        image = _Image(data, selection)
        image.future.add_done_callback(lambda _: self._finish(lane))
        self._pools[lane].submit(self._decode, image)
        return image.future

    def close(self) -> None:
        """Finishes all images that wait, and ends the threads."""
        with self._changed:
            self._closing = True
        for pool in self._pools:
            pool.shutdown()
        with self._changed:
            self._changed.notify_all()
        self._worker.join()

    def _finish(self, lane: int) -> None:
        with self._changed:
            self._unfinished[lane] -= 1
            self._changed.notify_all()

    def _decode(self, image: _Image) -> None:
        data, begun = image.data, time.perf_counter()
        if image.future.cancelled():
            return
        try:
            pixels = decode_image(data, file="the image")
            resized = self._detector.prepare(pixels)
        # The one who waits gets the error, whatever it is.
        except Exception as error:
            # Unless the future was cancelled meanwhile.
            if image.future.set_running_or_notify_cancel():
                image.future.set_exception(error)
            return
        image.height, image.width = pixels.shape[:2]
        image.data, image.resized = b"", resized
        image.decoded_at = time.perf_counter()
        image.decode_seconds = image.decoded_at - begun
        self._metrics.decode.observe(image.decode_seconds)
        with self._changed:
            self._decoded.append(image)
            self._changed.notify_all()

    def _work(self) -> None:
        while batch := self._next_batch():
            begun = time.perf_counter()
            try:
                self._detect(batch, begun)
            # As above: one batch that fails must not stop the next one.
            except Exception as error:
                for image, _ in batch:
                    if not image.future.done():
                        image.future.set_exception(error)

    def _next_batch(self) -> list[tuple[_Image, UInt8[np.ndarray, "h w 3"]]]:
        """Waits for images, and returns them; none at the end."""
        batch = list[tuple[_Image, UInt8[np.ndarray, "h w 3"]]]()
        with self._changed:
            while not batch:
                while not self._decoded:
                    if self._closing and not self.waiting:
                        return []
                    self._changed.wait()
                while self._decoded and len(batch) < self._limits.batch_size:
                    image = self._decoded.popleft()
                    resized = image.resized
                    # From here on, the future cannot be cancelled.
                    if resized is not None and image.future.set_running_or_notify_cancel():
                        batch.append((image, resized))
        return batch

    def _detect(self, batch: list[tuple[_Image, UInt8[np.ndarray, "h w 3"]]], begun: float) -> None:
        lowest = min(image.selection.lowest for image, _ in batch)
        inputs = [resized for _, resized in batch]
        detections = self._detector.detect_batch(inputs, score_threshold=lowest)
        network = time.perf_counter() - begun
        self._metrics.network.observe(network)
        self._metrics.batch.observe(len(batch))
        for (image, _), found in zip(batch, detections, strict=True):
            kept = image.selection.select(found)
            named = self._detector.name_in(kept, image.width, image.height)
            queue = begun - image.decoded_at
            self._metrics.queue.observe(queue)
            seconds = {"decode": image.decode_seconds, "queue": queue, "network": network}
            image.future.set_result(Found(image.width, image.height, named, seconds))


def _cost(data: bytes, size: tuple[int, int]) -> int:
    """Returns how much work the decoding is, in pixels times scans."""
    scans = _USUAL_SCANS
    if data.startswith(b"\xff\xd8"):
        codes = np.frombuffer(data, np.uint8)
        scans = int(np.count_nonzero((codes[:-1] == 0xFF) & (codes[1:] == 0xDA)))
    return size[0] * size[1] * scans
