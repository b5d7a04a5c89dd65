"""From sample numbers to batches.

Training sees an endless line of samples: number n is image `permutation(n // size)[n % size]` of
the dataset under the augmentation drawn from the stream (seed, "augment", n). Nothing else decides
a sample, so workers hold no state, and any step's batch can be made at any time, anywhere.
"""

import ctypes
import math
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain
from multiprocessing import RawArray
from typing import Any, NamedTuple, TypeVar, cast

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from multibox.config import AugmentationConfig
from multibox.data.dataset import Annotation
from multibox.data.decoded import DecodedImages
from multibox.data.geometry import Geometry, draw_geometry, whole_image
from multibox.data.images import read_image
from multibox.data.pixels import Colour, draw_colour, render
from multibox.errors import DataError, MultiboxError
from multibox.rng import stream
from multibox.structures import Batch, Targets

T = TypeVar("T")

# glibc's `malloc.h`.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


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
class TrainingExamples(Dataset[Example | MultiboxError]):
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

    def decide(self, sample: int) -> Decision:
        """Returns all that chance has to say of a sample."""
        epoch, place = divmod(sample, len(self.annotations))
        index = int(_permutation(self.seed, epoch, len(self.annotations))[place])
        annotation = self.annotations[index]
        rng = stream(self.seed, "augment", sample)
        geometry, boxes, kept = draw_geometry(
            rng, annotation.boxes, annotation.width_px, annotation.height_px, self.augmentation
        )
        return Decision(index, geometry, draw_colour(rng, self.augmentation), boxes, kept)

    def __getitem__(self, sample: int) -> Example | MultiboxError:
        """Returns a sample, or why there is none (workers must not lose the error's type)."""
        place, geometry, colour, boxes, kept = self.decide(sample)
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
class PlainExamples(Dataset[Example | MultiboxError]):
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
            file=annotation.image_path,
            remedy="The file changed after the run began; restore it",
        )
    return pixels


class _Labels(NamedTuple):
    """A batch but for its pixels: the fields of `Batch` and `Targets`, as arrays."""

    boxes: Float32[np.ndarray, "B M 4"]
    labels: Int64[np.ndarray, "B M"]
    difficult: Bool[np.ndarray, "B M"]
    valid: Bool[np.ndarray, "B M"]
    samples: Int64[np.ndarray, " B"]
    indices: Int64[np.ndarray, " B"]

    def around(self, images: UInt8[Tensor, "B H W 3"], *, pin_memory: bool = False) -> Batch:
        """Returns the batch of these labels and some images."""
        tensors = [torch.from_numpy(field) for field in self]
        if pin_memory:
            tensors = [tensor.pin_memory() for tensor in tensors]
        boxes, labels, difficult, valid, samples, indices = tensors
        # Interleaved pixels, seen as (B, 3, H, W), are what PyTorch calls channels_last: no copy.
        targets = Targets(boxes, labels, difficult, valid)
        return Batch(images.permute(0, 3, 1, 2), targets, samples, indices)


def collate(examples: Sequence[Example | MultiboxError]) -> Batch | MultiboxError:
    """Returns the batch of some examples, or the first error among them."""
    labels = _labels(examples)
    if isinstance(labels, MultiboxError):
        return labels
    images = [example.image for example in examples if isinstance(example, Example)]
    return labels.around(torch.from_numpy(np.stack(images)))


def _labels(examples: Sequence[Example | MultiboxError]) -> _Labels | MultiboxError:
    sound: list[Example] = []
    for example in examples:
        if isinstance(example, MultiboxError):
            return example
        sound.append(example)
    size, most = len(sound), max(len(example.labels) for example in sound)
    found = _Labels(
        np.zeros((size, most, 4), np.float32),
        np.zeros((size, most), np.int64),
        np.zeros((size, most), np.bool_),
        np.zeros((size, most), np.bool_),
        np.array([example.sample for example in sound], np.int64),
        np.array([example.place for example in sound], np.int64),
    )
    for row, example in enumerate(sound):
        count = len(example.labels)
        found.boxes[row, :count] = example.boxes
        found.labels[row, :count] = example.labels
        found.difficult[row, :count] = example.difficult
        found.valid[row, :count] = True
    return found


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
) -> Iterator[Batch]:
    """Yields the batches of lists of sample numbers, none longer than the first.

    Args:
        examples: Makes a sample of its number.
        numbers: The numbers of each batch.
        workers: Processes that work ahead; 0: this one, on demand.
        pin_memory: Put tensors where a GPU copies them from without waiting.

    Raises:
        DataError: An image cannot be read.
    """
    if workers == 0:
        return work_ahead(examples, collate, numbers, workers=0, pin_memory=pin_memory)
    made = _shared_batches(examples, numbers, workers, pin_memory)
    return _one_ahead(made) if pin_memory else made


class _Order(NamedTuple):
    """Asks a worker for a sample: its number, and where in the shared memory its pixels go."""

    slot: int
    row: int
    number: int


@dataclass(frozen=True)
class _Delivering(Dataset[tuple[int, Example] | MultiboxError]):
    """Samples whose pixels are left in memory that the processes share.

    The same pages serve again and again. Tensors sent from process to process would have new ones
    for each batch, whose provision costs a worker a tenth of its time, and files to pass on.

    Attributes:
        examples: Makes the samples.
        memory: The slots, one behind the other.
        slot: The shape of a slot: (B, H, W, 3).
    """

    examples: TrainingExamples | PlainExamples
    memory: Any
    slot: tuple[int, int, int, int]

    def pixels(self, slot: int) -> UInt8[np.ndarray, "B H W 3"]:
        """Returns the pixels in a slot."""
        size = math.prod(self.slot)
        return np.frombuffer(self.memory, np.uint8, size, slot * size).reshape(self.slot)

    def __getitem__(self, order: _Order) -> tuple[int, Example] | MultiboxError:
        """Returns a sample without its pixels, and the slot that holds them."""
        example = self.examples[order.number]
        if isinstance(example, MultiboxError):
            return example
        self.pixels(order.slot)[order.row] = example.image
        return order.slot, example._replace(image=_NO_PIXELS)


_NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
_AHEAD = 2
"""Batches that each worker makes ahead."""


def _shared_batches(
    examples: TrainingExamples | PlainExamples,
    numbers: Iterable[list[int]],
    workers: int,
    pin_memory: bool,
) -> Iterator[Batch]:
    queue = iter(numbers)
    first = next(queue, None)
    if first is None:
        return
    # As many batches are under way as the workers make ahead, and one is being copied here.
    slots = _AHEAD * workers + 1
    slot = (len(first), *examples.image_size_px, 3)
    delivering = _Delivering(examples, RawArray("B", slots * math.prod(slot)), slot)
    orders = (
        [_Order(place % slots, row, number) for row, number in enumerate(batch)]
        for place, batch in enumerate(chain([first], queue))
    )
    delivered = work_ahead(delivering, _sign, orders, workers=workers, pin_memory=False)
    for place, labels in delivered:
        pixels = torch.from_numpy(delivering.pixels(place)[: len(labels.samples)])
        images = torch.empty(pixels.shape, dtype=torch.uint8, pin_memory=pin_memory).copy_(pixels)
        yield labels.around(images, pin_memory=pin_memory)


def _sign(items: Sequence[tuple[int, Example] | MultiboxError]) -> Any:
    """Returns the slot of a batch and its labels, or the first error."""
    labels = _labels([item if isinstance(item, MultiboxError) else item[1] for item in items])
    if isinstance(labels, MultiboxError):
        return labels
    return cast(tuple[int, Example], items[0])[0], labels


def _one_ahead(items: Iterator[Batch]) -> Iterator[Batch]:
    """Yields the same items, each of them made while the one before is in use."""
    with ThreadPoolExecutor(1) as thread:
        pending = thread.submit(next, items, None)
        while (item := pending.result()) is not None:
            pending = thread.submit(next, items, None)
            yield item


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
        prefetch_factor=_AHEAD if workers else None,
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
    """Leaves it to the training process to notice Ctrl-C, and lets it end this one."""
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


def without_difficult(targets: Targets) -> Targets:
    """Returns the targets with difficult objects marked as not there (`bbox_util.cpp:1055-1084`).

    By then they have taken part in the choice of the crop, as in Caffe (`sampler.cpp:9-19`).
    """
    return targets._replace(valid=targets.valid & ~targets.difficult)
