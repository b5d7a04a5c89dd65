"""What `bench data` times: from a file to an augmented input, beside decoding alone."""

import dataclasses
import multiprocessing
import re
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8

from multibox.build import matcher
from multibox.commands.bench.timing import Measured, Work
from multibox.config import Config
from multibox.data.collate import Match
from multibox.data.dataset import Annotation, Dataset
from multibox.data.decoded import decode_into
from multibox.data.device.batches import load, resident_batches
from multibox.data.formats.layouts import read_dataset
from multibox.data.pipeline import TrainingExamples, batches, training_numbers
from multibox.data.workers import keep_memory
from multibox.errors import DataError
from multibox.rng import stream
from multibox.ssd.network import SSD

SAMPLES = 192
"""Samples of a run, for each process; no more images than this are used."""

_BATCH = 16
_CACHE_BYTES = 1 << 30
# As most of VOC's.
_PHOTOGRAPHS, _SIZE_PX, _QUALITY = 48, (375, 500), 90


def find_photographs(config: Config, data: Path | None, folder: Path) -> Dataset:
    """Returns the images to prepare.

    Args:
        config: Names the split.
        data: Their folder; None: they are drawn.
        folder: Where drawn ones go.

    Raises:
        DataError: The data cannot be used, or there is no image.
    """
    if data is None:
        drawn = tuple(_draw(folder / f"{number}.jpg", number) for number in range(_PHOTOGRAPHS))
        return Dataset("drawn", ("thing",), drawn)
    found = read_dataset(data, config.data.train_split, on_bad=config.data.on_bad)
    if not len(found):
        raise DataError("has no image to prepare", kind="no-usable-image", file=data)
    return dataclasses.replace(found, annotations=found.annotations[:SAMPLES])


def _draw(path: Path, number: int) -> Annotation:
    """Draws what a decoder takes for one of VOC's photographs: 500 x 375 pixels, some 95 kB.

    Its spectrum falls with the frequency, as that of photographs does (Field 1987); one to five
    objects.
    """
    rng, (height, width) = stream(0, "photograph", number), _SIZE_PX
    light = 36 * _natural(rng, 1.02)[..., None]
    colours = 12 * np.stack([_natural(rng, 1.4) for _ in range(3)], axis=-1)
    image = np.clip(128 + light + colours, 0, 255).astype(np.uint8)
    cv2.imwrite(str(path), image, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    count = int(rng.integers(1, 6))
    low = rng.uniform(0, 0.7, (count, 2))
    boxes = np.concatenate([low, low + rng.uniform(0.05, 0.3, (count, 2))], axis=1)
    return Annotation(
        path.stem,
        path,
        width,
        height,
        (boxes * (width, height, width, height)).astype(np.float32),
        np.zeros(count, np.int64),
        np.zeros(count, np.bool_),
    )


def _natural(rng: np.random.Generator, power: float) -> Float[np.ndarray, "H W"]:
    """Returns noise whose amplitudes fall with a power of the frequency; its deviation is 1."""
    height, width = _SIZE_PX
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    frequency[0, 0] = np.inf
    waves = rng.standard_normal((2, *frequency.shape))
    noise = np.fft.irfft2((waves[0] + 1j * waves[1]) / frequency**power, s=_SIZE_PX)
    found: Float[np.ndarray, "H W"] = noise / noise.std()
    return found


def prepare_images(
    config: Config,
    photographs: Dataset,
    network: SSD,
    folder: Path,
    device: torch.device,
) -> list[Work]:
    """Returns the works: on one core, in processes once they run, and on a device.

    Memory is kept from image to image (`keep_memory`) in this process as it is in a worker: page
    faults would else take a third of decoding's time, and flatter what it is compared with.

    Args:
        config: Of the recipe.
        photographs: What to prepare.
        network: That the images are prepared for.
        folder: Where decoded images may lie.
        device: Renders images that lie in its memory.
    """
    cv2.setNumThreads(1)
    keep_memory()
    examples = TrainingExamples(
        photographs.annotations, network.image_size_px, config.augmentation, config.run.seed
    )
    match = matcher(network, difficult=config.data.train_difficult)
    paths = [annotation.image_path for annotation in photographs.annotations]
    encoded = [np.frombuffer(path.read_bytes(), np.uint8) for path in paths]
    works = [
        Work("decode alone", lambda: _decode(encoded), SAMPLES),
        Work("one core", lambda: _prepare(examples), SAMPLES, "decode alone"),
    ]
    stored = decode_into(folder, photographs, limit_bytes=_CACHE_BYTES, say=lambda _: None)
    if stored is not None:
        cached = dataclasses.replace(examples, decoded=stored)
        name = "one core, images decoded before"
        works.append(Work(name, lambda: _prepare(cached), SAMPLES, "decode alone"))
    return [
        *works,
        Work(
            "decode alone, two processes",
            lambda: _decode_twice(encoded),
            2 * SAMPLES,
            works[0].name,
        ),
        Work("one worker", _loading(examples, match, 1), SAMPLES, "one core"),
        Work("two workers", _loading(examples, match, 2), 2 * SAMPLES, "one worker"),
        _rendering(examples, match, device),
    ]


def _decode(encoded: list[UInt8[np.ndarray, " _"]]) -> None:
    for number in range(SAMPLES):
        cv2.imdecode(encoded[number % len(encoded)], cv2.IMREAD_COLOR)


def _prepare(examples: TrainingExamples) -> None:
    for first in range(0, SAMPLES, _BATCH):
        deque(examples.make(range(first, first + _BATCH)), maxlen=0)


def _decode_twice(encoded: list[UInt8[np.ndarray, " _"]]) -> Measured:
    """Decodes in two processes at a time: what the machine's second core is worth."""
    context = multiprocessing.get_context("fork")
    ready, done = context.Barrier(3), context.Barrier(3)

    def work() -> None:
        ready.wait()
        _decode(encoded)
        done.wait()

    processes = [context.Process(target=work) for _ in range(2)]
    for process in processes:
        process.start()
    ready.wait()
    start = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - start
    for process in processes:
        process.join()
    return Measured(seconds)


def _loading(examples: TrainingExamples, match: Match, workers: int) -> Callable[[], Measured]:
    def work() -> Measured:
        """Times the batches after those that wait for the workers to start."""
        first, count = 4 * workers, workers * SAMPLES // _BATCH
        numbers = training_numbers(range(first + count), batch_size=_BATCH, rank=0, world_size=1)
        loaded = batches(examples, numbers, workers=workers, pin_memory=False, match=match)
        for _ in islice(loaded, first):
            pass
        start = time.perf_counter()
        for _ in islice(loaded, count - 1):
            pass
        memory = _most_private_mib()
        next(loaded)
        return Measured(time.perf_counter() - start, memory)

    return work


def _rendering(examples: TrainingExamples, match: Match, device: torch.device) -> Work:
    """Returns the work of a device and two workers; less of it on a CPU, which is slow at that."""
    resident = load(examples, device, batch_size=_BATCH, workers=2, progress=lambda *_: None)
    count = 2 * SAMPLES // _BATCH if device.type == "cuda" else 1

    def work() -> Measured:
        numbers = training_numbers(range(8 + count), batch_size=_BATCH, rank=0, world_size=1)
        rendered = resident_batches(resident, numbers, workers=2, match=match)
        for _ in islice(rendered, 8 if count > 1 else 0):
            pass
        start = time.perf_counter()
        for batch in islice(rendered, count):
            last = batch.images
        # The device may still be at it.
        last[0, 0, 0, 0].item()
        return Measured(time.perf_counter() - start)

    return Work("two workers and the device", work, count * _BATCH, "two workers")


def _most_private_mib() -> float | None:
    """Returns what the largest child process has to itself, where the kernel tells (Linux).

    What a worker shares with this process is what had been imported when it was forked.
    """
    found = []
    for child in multiprocessing.active_children():
        try:
            text = Path(f"/proc/{child.pid}/smaps_rollup").read_text()
        except OSError:
            continue
        found.append(sum(map(int, re.findall(r"^Private_\w+: +(\d+) kB", text, re.M))) / 1024)
    return max(found, default=None)
