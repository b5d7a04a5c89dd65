"""Makes the batches for given sample numbers.

Training reads an endless sequence of samples. Sample n is image `permutation(n // size)[n % size]`
of the dataset, with an augmentation drawn from the random stream (seed, "augment", n). A sample
depends on nothing else, so workers have no state and any process can make the batch of any step.
"""

import math
import mmap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float32, Int64, UInt8

from multibox.config import AugmentationConfig
from multibox.data.collate import NO_PIXELS, Example, Labels, Match, collate, label, unmatched
from multibox.data.dataset import Annotation
from multibox.data.decoded import DecodedImages
from multibox.data.geometry import Geometry, draw_geometry, whole_image
from multibox.data.images import read_image
from multibox.data.pixels import Colour, draw_colour, render
from multibox.data.workers import AHEAD, OnLoss, ignore_loss, one_ahead, work_ahead
from multibox.errors import DataError, MultiboxError
from multibox.rng import stream
from multibox.structures import Batch, Targets


class Decision(NamedTuple):
    """The random choices for a sample. They do not depend on pixels.

    Attributes:
        place: The image's index in the dataset.
        geometry: The crop, interpolation and mirroring.
        colour: The colour distortion.
        boxes: xyxy as fractions of the output.
        kept: The indices of these boxes among the image's objects.
    """

    place: int
    geometry: Geometry
    colour: Colour
    boxes: Float32[np.ndarray, "M 4"]
    kept: Int64[np.ndarray, " M"]


@dataclass(frozen=True)
class TrainingExamples:
    """The endless sequence of augmented samples.

    Attributes:
        annotations: The images of the training split.
        image_size_px: (height, width) of the network input.
        augmentation: Settings of the augmentation.
        seed: The seed of the run.
        decoded: Images that are stored decoded, or None. They do not change the samples.
    """

    annotations: Sequence[Annotation]
    image_size_px: tuple[int, int]
    augmentation: AugmentationConfig
    seed: int
    decoded: DecodedImages | None = None

    def files(self, samples: Sequence[int]) -> list[Path]:
        """Returns the image files of some samples."""
        return [self.annotations[self._place(sample)].image_path for sample in samples]

    def _place(self, sample: int) -> int:
        epoch, place = divmod(sample, len(self.annotations))
        return int(_permutation(self.seed, epoch, len(self.annotations))[place])

    def decide(self, sample: int) -> Decision:
        """Returns the random choices for a sample."""
        index = self._place(sample)
        annotation = self.annotations[index]
        rng = stream(self.seed, "augment", sample)
        geometry, boxes, kept = draw_geometry(
            rng, annotation.boxes, annotation.width_px, annotation.height_px, self.augmentation
        )
        return Decision(index, geometry, draw_colour(rng, self.augmentation), boxes, kept)

    def __getitem__(self, sample: int) -> Example | MultiboxError:
        """Returns a sample, or the error: raised in a worker, it would lose its type."""
        return self._make(sample, self.decide(sample))

    def make(self, samples: Sequence[int]) -> Iterator[Example | MultiboxError]:
        """Yields some samples, or errors in their place.

        All random choices are made before the first image is decoded. Between two images they
        would take twice as long, because their code would have left the processor's cache.
        """
        decisions = [self.decide(sample) for sample in samples]
        yield from map(self._make, samples, decisions)

    def _make(self, sample: int, decision: Decision) -> Example | MultiboxError:
        place, geometry, colour, boxes, kept = decision
        annotation = self.annotations[place]
        pixels = self.decoded.read(place, annotation) if self.decoded else None
        if pixels is None:
            try:
                pixels = read_pixels(annotation)
            except MultiboxError as error:
                return error
        image = render(pixels, geometry, colour, self.image_size_px)
        labels, difficult = annotation.labels[kept], annotation.difficult[kept]
        return Example(image, boxes, labels, difficult, sample, place)


@dataclass(frozen=True)
class PlainExamples:
    """The images of a split, whole and in order: sample n is image n.

    Attributes:
        annotations: The images.
        image_size_px: (height, width) of the network input.
    """

    annotations: Sequence[Annotation]
    image_size_px: tuple[int, int]

    def __getitem__(self, sample: int) -> Example | MultiboxError:
        """Returns a sample, or the error."""
        annotation = self.annotations[sample]
        try:
            pixels = read_pixels(annotation)
        except MultiboxError as error:
            return error
        whole = whole_image(annotation.width_px, annotation.height_px)
        image = render(pixels, whole, None, self.image_size_px)
        return Example(
            image, annotation.boxes, annotation.labels, annotation.difficult, sample, sample
        )

    def files(self, samples: Sequence[int]) -> list[Path]:
        """Returns the image files of some samples."""
        return [self.annotations[sample].image_path for sample in samples]

    def make(self, samples: Sequence[int]) -> Iterator[Example | MultiboxError]:
        """Yields some samples, or errors in their place."""
        yield from map(self.__getitem__, samples)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> Int64[np.ndarray, " size"]:
    return stream(seed, "order", epoch).permutation(size)


def read_pixels(annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an image's RGB pixels.

    Raises:
        DataError: The image cannot be read, or its size differs from its annotation's.
    """
    pixels = read_image(annotation.image_path)
    height, width = pixels.shape[:2]
    if (width, height) != (annotation.width_px, annotation.height_px):
        raise DataError(
            f"is {width} x {height} pixels, but its annotation was read as "
            f"{annotation.width_px} x {annotation.height_px}",
            kind="size-differs",
            file=annotation.image_path,
            remedy="Restore the file: it changed after the run began",
        )
    return pixels


def training_numbers(
    steps: range, *, batch_size: int, rank: int, world_size: int
) -> Iterator[list[int]]:
    """Yields the sample numbers of one process for each step.

    Step t uses the `batch_size` samples from t * batch_size on. Each process takes an equal,
    contiguous part of them, so the samples of a step do not depend on the number of processes.
    """
    share = batch_size // world_size
    for step in steps:
        first = step * batch_size + rank * share
        yield list(range(first, first + share))


def batches(
    examples: TrainingExamples | PlainExamples,
    numbers: Iterable[list[int]],
    *,
    workers: int,
    pin_memory: bool,
    match: Match = unmatched,
    on_loss: OnLoss = ignore_loss,
) -> Iterator[Batch]:
    """Yields the batches for lists of sample numbers.

    Args:
        examples: Makes a sample from its number.
        numbers: The sample numbers of each batch. No list may be longer than the first.
        workers: The number of processes that work ahead. With 0, this process makes each batch on
            demand.
        pin_memory: Whether to put tensors into pinned memory.
        match: Matches objects to default boxes, on the CPU, where the batch is made.
        on_loss: Is called before a worker is replaced.

    Raises:
        DataError: An image cannot be read.
        WorkerError: Too many workers were lost at the same batch.
    """
    if workers == 0:
        return work_ahead(
            examples,
            partial(collate, match=match),
            numbers,
            workers=0,
            pin_memory=pin_memory,
            files=examples.files,
        )
    made = _shared_batches(examples, numbers, workers, pin_memory, match, on_loss)
    return one_ahead(made) if pin_memory else made


class _Order(NamedTuple):
    """The request for a batch: its sample numbers, and the slot of memory for their pixels."""

    slot: int
    numbers: list[int]


class _Delivery(NamedTuple):
    """A worker's answer: the labels of a batch, and the slot that its pixels are in."""

    slot: int
    labels: Labels


@dataclass(frozen=True)
class _Delivering:
    """Makes batches in memory that the processes share.

    The same memory is used for all batches. Sending tensors between processes would allocate new
    memory for each batch, which takes a tenth of a worker's time, and would pass on open files.

    Attributes:
        examples: Makes the samples.
        memory: The slots, one after the other.
        slot: The shape of a slot: (B, H, W, 3).
        match: Matches objects to default boxes.
    """

    examples: TrainingExamples | PlainExamples
    memory: mmap.mmap
    slot: tuple[int, int, int, int]
    match: Match

    def pixels(self, slot: int) -> UInt8[np.ndarray, "B H W 3"]:
        """Returns the pixels in a slot."""
        size = math.prod(self.slot)
        return np.frombuffer(self.memory, np.uint8, size, slot * size).reshape(self.slot)

    def __getitem__(self, order: _Order) -> _Delivery | MultiboxError:
        """Writes a batch's pixels into its slot and returns its labels, or returns an error."""
        found: list[Example | MultiboxError] = []
        rows = self.pixels(order.slot)[: len(order.numbers)]
        for row, example in zip(rows, self.examples.make(order.numbers), strict=True):
            if isinstance(example, MultiboxError):
                return example
            row[...] = example.image
            found.append(example._replace(image=NO_PIXELS))
        labels = label(found, self.match)
        return labels if isinstance(labels, MultiboxError) else _Delivery(order.slot, labels)


def _shared_batches(
    examples: TrainingExamples | PlainExamples,
    numbers: Iterable[list[int]],
    workers: int,
    pin_memory: bool,
    match: Match,
    on_loss: OnLoss,
) -> Iterator[Batch]:
    queue = iter(numbers)
    first = next(queue, None)
    if first is None:
        return
    # One slot for each batch that a worker has in hand, and one for the batch that is copied here.
    slots = AHEAD * workers + 1
    slot = (len(first), *examples.image_size_px, 3)
    # Anonymous memory is shared with forked processes and needs no file system, which may be full.
    delivering = _Delivering(examples, mmap.mmap(-1, slots * math.prod(slot)), slot, match)
    orders = ([_Order(place % slots, batch)] for place, batch in enumerate(chain([first], queue)))
    for place, labels in work_ahead(
        delivering,
        _only,
        orders,
        workers=workers,
        pin_memory=False,
        files=lambda batch: examples.files(batch[0].numbers),
        on_loss=on_loss,
    ):
        pixels = delivering.pixels(place)[: len(labels.samples)]
        images = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=pin_memory)
        # NumPy copies with one thread. PyTorch's threads would wait for cores that workers use.
        np.copyto(images.numpy(), pixels)
        yield labels.around(images, pin_memory=pin_memory)


def _only(items: Sequence[_Delivery | MultiboxError]) -> _Delivery | MultiboxError:
    (item,) = items
    return item


def without_difficult(targets: Targets) -> Targets:
    """Returns the targets with difficult objects marked as invalid (`bbox_util.cpp:1055-1084`).

    As in Caffe, they still take part in the choice of the crop (`sampler.cpp:9-19`).
    """
    return targets._replace(valid=targets.valid & ~targets.difficult)
