"""From sample numbers to batches.

Training sees an endless line of samples: number n is image `permutation(n // size)[n % size]` of
the dataset under the augmentation drawn from the stream (seed, "augment", n). Nothing else decides
a sample, so workers hold no state, and any step's batch can be made at any time, anywhere.
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
from multibox.data.collate import (
    NO_PIXELS,
    Example,
    Labels,
    Match,
    collate,
    label,
    unmatched,
)
from multibox.data.dataset import Annotation
from multibox.data.decoded import DecodedImages
from multibox.data.geometry import Geometry, draw_geometry, whole_image
from multibox.data.images import read_image
from multibox.data.pixels import Colour, draw_colour, render
from multibox.data.workers import AHEAD, OnLoss, one_ahead, unsaid, work_ahead
from multibox.errors import DataError, MultiboxError
from multibox.rng import stream
from multibox.structures import Batch, Targets


class Decision(NamedTuple):
    """What a sample is made of, decided without looking at any pixel.

    Attributes:
        place: The image's place in the dataset.
        geometry: Where its pixels come from.
        colour: Its distortion.
        boxes: xyxy in the unit frame of the output.
        kept: The places of these boxes among the image's objects.
    """

    place: int
    geometry: Geometry
    colour: Colour
    boxes: Float32[np.ndarray, "M 4"]
    kept: Int64[np.ndarray, " M"]


@dataclass(frozen=True)
class TrainingExamples:
    """The endless line of augmented samples.

    Attributes:
        annotations: The images of the training split.
        image_size_px: (height, width) of the network input.
        augmentation: The chain's settings.
        seed: The run's.
        decoded: Images that need not be decoded, if there are any; samples are the same.
    """

    annotations: Sequence[Annotation]
    image_size_px: tuple[int, int]
    augmentation: AugmentationConfig
    seed: int
    decoded: DecodedImages | None = None

    def files(self, samples: Sequence[int]) -> list[Path]:
        """Returns the images of some samples."""
        return [self.annotations[self._place(sample)].image_path for sample in samples]

    def _place(self, sample: int) -> int:
        epoch, place = divmod(sample, len(self.annotations))
        return int(_permutation(self.seed, epoch, len(self.annotations))[place])

    def decide(self, sample: int) -> Decision:
        """Returns all that chance has to say of a sample."""
        index = self._place(sample)
        annotation = self.annotations[index]
        rng = stream(self.seed, "augment", sample)
        geometry, boxes, kept = draw_geometry(
            rng, annotation.boxes, annotation.width_px, annotation.height_px, self.augmentation
        )
        return Decision(index, geometry, draw_colour(rng, self.augmentation), boxes, kept)

    def __getitem__(self, sample: int) -> Example | MultiboxError:
        """Returns a sample, or why there is none (workers must not lose the error's type)."""
        return self._make(sample, self.decide(sample))

    def make(self, samples: Sequence[int]) -> Iterator[Example | MultiboxError]:
        """Yields some samples, or why one is not there.

        They are decided in one go: between two images, the code that does it is no longer in the
        processor's cache, and takes twice as long.
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
        """Returns a sample, or why there is none."""
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
        """Returns the images of some samples."""
        return [self.annotations[sample].image_path for sample in samples]

    def make(self, samples: Sequence[int]) -> Iterator[Example | MultiboxError]:
        """Yields some samples, or why one is not there."""
        yield from map(self.__getitem__, samples)


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> Int64[np.ndarray, " size"]:
    return stream(seed, "order", epoch).permutation(size)


def read_pixels(annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]:
    """Returns an image's RGB pixels.

    Raises:
        DataError: It cannot be read, or is not of the size that its annotation was read with.
    """
    pixels = read_image(annotation.image_path)
    height, width = pixels.shape[:2]
    if (width, height) != (annotation.width_px, annotation.height_px):
        raise DataError(
            f"is {width} x {height} pixels, but its annotation was read as "
            f"{annotation.width_px} x {annotation.height_px}",
            kind="size-differs",
            file=annotation.image_path,
            remedy="The file changed after the run began; restore it",
        )
    return pixels


def training_numbers(
    steps: range, *, batch_size: int, rank: int, world_size: int
) -> Iterator[list[int]]:
    """Yields a process's sample numbers for each of some steps.

    Step t is made of the samples t * batch_size and following; process r takes an equal run of
    them. So the steps' samples do not depend on the number of processes.
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
    on_loss: OnLoss = unsaid,
) -> Iterator[Batch]:
    """Yields the batches of lists of sample numbers, none longer than the first.

    Args:
        examples: Makes a sample of its number.
        numbers: The numbers of each batch.
        workers: Processes that work ahead; 0: this one, on demand.
        pin_memory: Put tensors where a GPU copies them from without waiting.
        match: Finds the matches, on the CPU, where the batch is made.
        on_loss: Is told why workers are replaced.

    Raises:
        DataError: An image cannot be read.
        WorkerError: Workers were lost again and again at a batch.
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
    """Asks a worker for a batch: its samples' numbers, and the place in memory for their pixels."""

    slot: int
    numbers: list[int]


class _Delivery(NamedTuple):
    """What a worker answers."""

    slot: int
    labels: Labels


@dataclass(frozen=True)
class _Delivering:
    """Batches whose pixels are left in memory that the processes share.

    The same pages serve again and again. Tensors sent from process to process would have new ones
    for each batch, whose provision costs a worker a tenth of its time, and files to pass on.

    Attributes:
        examples: Makes the samples.
        memory: The slots, one behind the other.
        slot: The shape of a slot: (B, H, W, 3).
        match: Finds the matches.
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
        """Returns a batch's labels and leaves its pixels in the slot, or returns an error."""
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
    # As many batches are under way as the workers make ahead, and one is being copied here.
    slots = AHEAD * workers + 1
    slot = (len(first), *examples.image_size_px, 3)
    # Of no file system, which may be full; the processes that are forked share it.
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
        # By one thread: PyTorch's would each wait for a core that a worker has.
        np.copyto(images.numpy(), pixels)
        yield labels.around(images, pin_memory=pin_memory)


def _only(items: Sequence[_Delivery | MultiboxError]) -> _Delivery | MultiboxError:
    (item,) = items
    return item


def without_difficult(targets: Targets) -> Targets:
    """Returns the targets with difficult objects marked as not there (`bbox_util.cpp:1055-1084`).

    By then they have taken part in the choice of the crop, as in Caffe (`sampler.cpp:9-19`).
    """
    return targets._replace(valid=targets.valid & ~targets.difficult)
