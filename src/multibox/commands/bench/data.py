"""The works of `bench data`: from a file to an augmented input, beside decoding alone."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path

import cv2
import numpy as np
import torch

from multibox.build import matcher
from multibox.commands.bench.timing import Work
from multibox.config import Config
from multibox.data.collate import Match
from multibox.data.dataset import Dataset
from multibox.data.decoded import decode_into
from multibox.data.device.batches import load, resident_batches
from multibox.data.pipeline import TrainingExamples, batches, training_numbers
from multibox.data.workers import keep_memory
from multibox.ssd.network import SSD
from multibox.structures import Batch

SAMPLES = 192
"""Samples of a run in each process. No more images than this are used."""

_BATCH = 16
_CACHE_BYTES = 1 << 30


def prepare_images(
    config: Config,
    dataset: Dataset,
    network: SSD,
    folder: Path,
    device: torch.device,
) -> list[Work]:
    """Returns the works: on one core, in worker processes, and on a device.

    This process keeps memory from image to image (`keep_memory`), as workers do. Otherwise page
    faults would take a third of the time of decoding alone, and make the others look good.

    Args:
        config: The recipe's configuration.
        dataset: The images to prepare.
        network: The network that takes the images.
        folder: A place for decoded images.
        device: The device that renders images from its own memory.
    """
    cv2.setNumThreads(1)
    keep_memory()
    annotations = dataset.annotations[:SAMPLES]
    dataset = replace(dataset, annotations=annotations)
    examples = TrainingExamples(
        annotations, network.image_size_px, config.augmentation, config.run.seed
    )
    match = matcher(network, difficult=config.data.train_difficult)
    encoded = [np.frombuffer(item.image_path.read_bytes(), np.uint8) for item in annotations]

    def decode() -> None:
        for number in range(SAMPLES):
            cv2.imdecode(encoded[number % len(encoded)], cv2.IMREAD_COLOR)

    works = [
        Work("decode alone", decode, SAMPLES),
        Work("one core", _preparing(examples), SAMPLES, "decode alone"),
    ]
    stored = decode_into(folder, dataset, limit_bytes=_CACHE_BYTES, say=lambda _: None)
    if stored is not None:
        cached = _preparing(replace(examples, decoded=stored))
        works.append(Work("one core, images decoded before", cached, SAMPLES, "decode alone"))
    return [
        *works,
        Work("one worker", _loading(examples, match, 1), SAMPLES, "one core"),
        Work("two workers", _loading(examples, match, 2), 2 * SAMPLES, "one worker"),
        _rendering(examples, match, device),
    ]


def _preparing(examples: TrainingExamples) -> Callable[[], None]:
    def work() -> None:
        for first in range(0, SAMPLES, _BATCH):
            deque(examples.make(range(first, first + _BATCH)), maxlen=0)

    return work


def _loading(examples: TrainingExamples, match: Match, workers: int) -> Callable[[], float]:
    first, count = 4 * workers, workers * SAMPLES // _BATCH

    def work() -> float:
        numbers = training_numbers(range(first + count), batch_size=_BATCH, rank=0, world_size=1)
        found = batches(examples, numbers, workers=workers, pin_memory=False, match=match)
        return _seconds(found, first)

    return work


def _rendering(examples: TrainingExamples, match: Match, device: torch.device) -> Work:
    """Returns the work of a device and two workers. A CPU is slow at it and makes one batch."""
    resident = load(examples, device, batch_size=_BATCH, workers=2, progress=lambda *_: None)
    first, count = (8, 2 * SAMPLES // _BATCH) if device.type == "cuda" else (0, 1)

    def work() -> float:
        numbers = training_numbers(range(first + count), batch_size=_BATCH, rank=0, world_size=1)
        return _seconds(resident_batches(resident, numbers, workers=2, match=match), first)

    return Work("two workers and the device", work, count * _BATCH, "two workers")


def _seconds(found: Iterator[Batch], first: int) -> float:
    """Returns the time of all batches after the `first` ones, which wait for the workers."""
    deque(islice(found, first), maxlen=0)
    start = time.perf_counter()
    for batch in found:
        last = batch.images
    # The device may not have finished yet.
    last[0, 0, 0, 0].item()
    return time.perf_counter() - start
