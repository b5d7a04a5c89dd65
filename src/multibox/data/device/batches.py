"""Keeps decoded training images in a device's memory and renders batches from them there.

The random choices for a sample are made on the CPU by `pipeline.TrainingExamples`. Workers turn
sample numbers into targets and small plans, which are copied to the device without waiting. The
pixels stay on the device. Boxes and labels have the same bits as in the CPU pipeline. Pixels differ
slightly, because `render` rounds differently from OpenCV.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from multibox.data.collate import NO_PIXELS, Example, Match, collate, unmatched
from multibox.data.device.plan import Plan, Plans, join_plans, plan
from multibox.data.device.render import ColourTables, colour_tables, render
from multibox.data.pipeline import TrainingExamples, read_pixels
from multibox.data.workers import OnLoss, ignore_loss, one_ahead, work_ahead
from multibox.errors import ConfigError, MultiboxError
from multibox.structures import Batch

# Peak memory of rendering for each pixel of the largest image, and memory of the colour tables.
_SCRATCH_BYTES, _TABLE_BYTES = 80, 1 << 27

Progress = Callable[[int, int], None]
"""Gets the number of decoded images and the number of all images."""


class ResidentExamples(NamedTuple):
    """The sequence of augmented samples, with its images in a device's memory.

    Attributes:
        examples: The sequence of samples.
        firsts: The index of each image's first pixel in `pixels`, and last the number of pixels.
        pixels: RGB of all images, one row after the other.
        tables: The colour tables, or None if colours are not distorted.
    """

    examples: TrainingExamples
    firsts: Int64[np.ndarray, " n"]
    pixels: UInt8[Tensor, "N 3"]
    tables: ColourTables | None


def load(
    examples: TrainingExamples,
    device: torch.device,
    *,
    batch_size: int,
    workers: int,
    progress: Progress,
) -> ResidentExamples:
    """Decodes all images into a device's memory.

    Args:
        examples: The images and their augmentation.
        device: The device to keep the images on.
        batch_size: Number of images to render at a time.
        workers: Number of images to decode at a time.
        progress: Is called after each image.

    Raises:
        ConfigError: The device does not have enough memory.
        DataError: An image cannot be read.
    """
    annotations, distort = examples.annotations, examples.augmentation.distort
    sizes = np.array([(item.height_px, item.width_px) for item in annotations], np.int64)
    firsts = np.concatenate([np.zeros(1, np.int64), sizes.prod(axis=1).cumsum()])
    scratch = batch_size * int(sizes.max(axis=0).prod()) * _SCRATCH_BYTES
    needed, free = 3 * int(firsts[-1]) + _TABLE_BYTES * distort + scratch, _free_bytes(device)
    if needed > free:
        raise ConfigError(
            f"{len(annotations)} decoded images and their rendering need {needed} bytes of "
            f"memory on {device}, where {free} are free",
            remedy="Use --pipeline cpu",
        )
    pixels = torch.empty(int(firsts[-1]), 3, dtype=torch.uint8, device=device)

    def fill(place: int) -> None:
        stored = examples.decoded.read(place, annotations[place]) if examples.decoded else None
        image = torch.from_numpy(read_pixels(annotations[place]) if stored is None else stored)
        pixels[firsts[place] : firsts[place + 1]] = image.reshape(-1, 3)

    # Decoding and copying release the GIL.
    pool = ThreadPoolExecutor(max(1, workers))
    try:
        for done, _ in enumerate(pool.map(fill, range(len(annotations))), start=1):
            progress(done, len(annotations))
    finally:
        # After an interrupt, do not wait for the remaining images.
        pool.shutdown(cancel_futures=True)
    return ResidentExamples(examples, firsts, pixels, colour_tables(device) if distort else None)


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    # All memory of a CPU counts as free, because file system caches give way.
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def resident_batches(
    resident: ResidentExamples,
    numbers: Iterable[list[int]],
    *,
    workers: int,
    match: Match = unmatched,
    on_loss: OnLoss = ignore_loss,
) -> Iterator[Batch]:
    """Returns the batches for lists of sample numbers, with their images on the device.

    Args:
        resident: The images.
        numbers: The sample numbers of each batch.
        workers: The number of processes that plan ahead. With 0, this process plans each batch on
            demand.
        match: Matches objects to default boxes, on the CPU, where the batch is planned.
        on_loss: Is called before a worker is replaced.

    Raises:
        WorkerError: Too many workers were lost at the same batch.
    """
    device, size_px = resident.pixels.device, resident.examples.image_size_px
    planned = _Planned(resident.examples, resident.firsts, match)
    on_gpu = device.type == "cuda"
    made = work_ahead(
        planned,
        planned.join,
        numbers,
        workers=workers,
        pin_memory=on_gpu,
        files=resident.examples.files,
        on_loss=on_loss,
    )
    rendered = (
        batch._replace(images=render(resident.pixels, plans.to(device), resident.tables, size_px))
        for batch, plans in made
    )
    return one_ahead(rendered) if on_gpu else rendered


@dataclass(frozen=True)
class _Planned:
    """Makes targets and rendering plans in the workers, without any pixels."""

    examples: TrainingExamples
    firsts: Int64[np.ndarray, " n"]
    match: Match

    def __getitem__(self, sample: int) -> tuple[Example, Plan]:
        place, geometry, colour, boxes, kept = self.examples.decide(sample)
        item = self.examples.annotations[place]
        size_px, first = (item.height_px, item.width_px), int(self.firsts[place])
        return (
            Example(NO_PIXELS, boxes, item.labels[kept], item.difficult[kept], sample, place),
            plan(geometry, colour, size_px, self.examples.image_size_px, first),
        )

    def join(self, samples: Sequence[tuple[Example, Plan]]) -> tuple[Batch, Plans] | MultiboxError:
        batch = collate([example for example, _ in samples], self.match)
        if isinstance(batch, MultiboxError):
            return batch
        return batch, join_plans([plan for _, plan in samples], self.examples.image_size_px)
