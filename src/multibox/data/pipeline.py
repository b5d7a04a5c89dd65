"""From sample numbers to batches.

Training sees an endless line of samples: number n is image `permutation(n // size)[n % size]` of
the dataset under the augmentation drawn from the stream (seed, "augment", n). Nothing else decides
a sample, so workers hold no state, and any step's batch can be made at any time, anywhere: those
that die are replaced (`workers`).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8

from multibox.config import AugmentationConfig
from multibox.data.dataset import Annotation
from multibox.data.geometry import draw_geometry, whole_image
from multibox.data.images import read_image
from multibox.data.pixels import draw_colour, render
from multibox.data.workers import OnLoss, unsaid, work_ahead
from multibox.errors import DataError, MultiboxError
from multibox.rng import stream
from multibox.structures import Batch, Targets


class Example(NamedTuple):
    """One image as the network sees it; shape letters as in `structures`.

    Attributes:
        image: RGB.
        boxes: xyxy in the unit frame of `image`.
        labels: 0..C-1.
        difficult: Whether evaluation ignores the object.
        sample: The sample's number.
        place: The image's place in the dataset.
    """

    image: UInt8[np.ndarray, "H W 3"]
    boxes: Float32[np.ndarray, "M 4"]
    labels: Int64[np.ndarray, " M"]
    difficult: Bool[np.ndarray, " M"]
    sample: int
    place: int


@dataclass(frozen=True)
class TrainingExamples:
    """The endless line of augmented samples.

    Attributes:
        annotations: The images of the training split.
        image_size_px: (height, width) of the network input.
        augmentation: The chain's settings.
        seed: The run's.
    """

    annotations: Sequence[Annotation]
    image_size_px: tuple[int, int]
    augmentation: AugmentationConfig
    seed: int

    def __getitem__(self, sample: int) -> Example | MultiboxError:
        """Returns a sample, or why there is none (workers must not lose the error's type)."""
        index = self._index(sample)
        annotation = self.annotations[index]
        rng = stream(self.seed, "augment", sample)
        geometry, boxes, kept = draw_geometry(
            rng, annotation.boxes, annotation.width_px, annotation.height_px, self.augmentation
        )
        colour = draw_colour(rng, self.augmentation)
        try:
            pixels = _read(annotation)
        except MultiboxError as error:
            return error
        image = render(pixels, geometry, colour, self.image_size_px)
        labels, difficult = annotation.labels[kept], annotation.difficult[kept]
        return Example(image, boxes, labels, difficult, sample, index)

    def path_of(self, sample: int) -> Path:
        """Returns the file of a sample's image."""
        return self.annotations[self._index(sample)].image_path

    def _index(self, sample: int) -> int:
        epoch, place = divmod(sample, len(self.annotations))
        return int(_permutation(self.seed, epoch, len(self.annotations))[place])


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
            pixels = _read(annotation)
        except MultiboxError as error:
            return error
        whole = whole_image(annotation.width_px, annotation.height_px)
        image = render(pixels, whole, None, self.image_size_px)
        return Example(
            image, annotation.boxes, annotation.labels, annotation.difficult, sample, sample
        )

    def path_of(self, sample: int) -> Path:
        """Returns the file of a sample's image."""
        return self.annotations[sample].image_path


Examples: TypeAlias = TrainingExamples | PlainExamples


@lru_cache(maxsize=2)
def _permutation(seed: int, epoch: int, size: int) -> Int64[np.ndarray, " size"]:
    return stream(seed, "order", epoch).permutation(size)


def _read(annotation: Annotation) -> UInt8[np.ndarray, "H W 3"]:
    pixels = read_image(annotation.image_path)
    height, width = pixels.shape[:2]
    if (width, height) != (annotation.width_px, annotation.height_px):
        raise DataError(
            f"is {width} x {height} pixels, but its annotation was read as "
            f"{annotation.width_px} x {annotation.height_px}",
            file=annotation.image_path,
            remedy="The file changed after the run began; restore it",
        )
    return pixels


def collate(examples: Sequence[Example | MultiboxError]) -> Batch | MultiboxError:
    """Returns the batch of some examples, or the first error among them."""
    sound: list[Example] = []
    for example in examples:
        if isinstance(example, MultiboxError):
            return example
        sound.append(example)
    most = max(len(example.labels) for example in sound)
    size = len(sound)
    boxes = torch.zeros(size, most, 4)
    labels = torch.zeros(size, most, dtype=torch.int64)
    difficult = torch.zeros(size, most, dtype=torch.bool)
    valid = torch.zeros(size, most, dtype=torch.bool)
    for row, example in enumerate(sound):
        count = len(example.labels)
        boxes[row, :count] = torch.from_numpy(example.boxes)
        labels[row, :count] = torch.from_numpy(example.labels)
        difficult[row, :count] = torch.from_numpy(example.difficult)
        valid[row, :count] = True
    # Interleaved pixels, seen as (B, 3, H, W), are what PyTorch calls channels_last: no copy.
    images = torch.from_numpy(np.stack([example.image for example in sound])).permute(0, 3, 1, 2)
    return Batch(
        images,
        Targets(boxes, labels, difficult, valid),
        torch.tensor([example.sample for example in sound]),
        torch.tensor([example.place for example in sound]),
    )


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
    examples: Examples,
    numbers: Iterable[list[int]],
    *,
    workers: int,
    pin_memory: bool,
    on_loss: OnLoss = unsaid,
) -> Iterator[Batch]:
    """Yields the batches of lists of sample numbers.

    Args:
        examples: Makes a sample of its number.
        numbers: The numbers of each batch.
        workers: Processes that work ahead; 0: this one, on demand.
        pin_memory: Put the batches where a GPU copies them from without waiting.
        on_loss: Is told why workers are replaced.

    Raises:
        DataError: An image cannot be read.
        WorkerError: Workers were lost again and again at a batch.
    """
    return work_ahead(
        examples,
        collate,
        numbers,
        workers=workers,
        pin_memory=pin_memory,
        files=lambda batch: [examples.path_of(sample) for sample in batch],
        on_loss=on_loss,
    )


def without_difficult(targets: Targets) -> Targets:
    """Returns the targets with difficult objects marked as not there (`bbox_util.cpp:1055-1084`).

    By then they have taken part in the choice of the crop, as in Caffe (`sampler.cpp:9-19`).
    """
    return targets._replace(valid=targets.valid & ~targets.difficult)
