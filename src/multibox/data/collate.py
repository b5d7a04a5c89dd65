"""Makes a batch from examples, which have one image each."""

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from multibox.errors import MultiboxError
from multibox.structures import Batch, Matches, Targets

Match: TypeAlias = Callable[[Targets], Matches]
"""Returns what a network is to say of a batch's images (see `ssd/matching.py`)."""


def unmatched(targets: Targets) -> Matches:
    """Matches nothing, for batches that no loss is computed of."""
    batch = targets.valid.shape[0]
    blank = torch.zeros(batch, 0, dtype=torch.int64)
    return Matches(blank, blank, torch.zeros(batch, 0, 4))


NO_PIXELS = np.zeros((0, 0, 3), np.uint8)
"""Stands in for the image of an example where the pixels are elsewhere, or not yet rendered."""


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


class Labels(NamedTuple):
    """A batch but for its pixels: the fields of `Targets`, `Matches` and `Batch`, as arrays."""

    boxes: Float32[np.ndarray, "B M 4"]
    labels: Int64[np.ndarray, "B M"]
    difficult: Bool[np.ndarray, "B M"]
    valid: Bool[np.ndarray, "B M"]
    matched: Int64[np.ndarray, "B P"]
    classes: Int64[np.ndarray, "B P"]
    offsets: Float32[np.ndarray, "B P 4"]
    samples: Int64[np.ndarray, " B"]
    indices: Int64[np.ndarray, " B"]

    def around(self, images: UInt8[Tensor, "B H W 3"], *, pin_memory: bool = False) -> Batch:
        """Returns the batch of these labels and some images.

        Args:
            images: Interleaved, as they are rendered.
            pin_memory: Put the labels where a GPU copies them from without waiting.
        """
        tensors = [torch.from_numpy(field) for field in self]
        if pin_memory:
            tensors = [tensor.pin_memory() for tensor in tensors]
        # Interleaved pixels, seen as (B, 3, H, W), are what PyTorch calls channels_last: no copy.
        pixels = images.permute(0, 3, 1, 2)
        return Batch(pixels, Targets(*tensors[:4]), Matches(*tensors[4:7]), *tensors[7:])


def collate(
    examples: Sequence[Example | MultiboxError], match: Match = unmatched
) -> Batch | MultiboxError:
    """Returns the batch of some examples, or the first error among them."""
    labels = label(examples, match)
    if isinstance(labels, MultiboxError):
        return labels
    images = [example.image for example in examples if isinstance(example, Example)]
    return labels.around(torch.from_numpy(np.stack(images)))


def label(examples: Sequence[Example | MultiboxError], match: Match) -> Labels | MultiboxError:
    """Returns the labels of some examples, or the first error among them."""
    sound: list[Example] = []
    for example in examples:
        if isinstance(example, MultiboxError):
            return example
        sound.append(example)
    size, most = len(sound), max(len(example.labels) for example in sound)
    boxes = np.zeros((size, most, 4), np.float32)
    labels = np.zeros((size, most), np.int64)
    difficult, valid = np.zeros((2, size, most), np.bool_)
    for row, example in enumerate(sound):
        count = len(example.labels)
        boxes[row, :count] = example.boxes
        labels[row, :count] = example.labels
        difficult[row, :count] = example.difficult
        valid[row, :count] = True
    matches = match(Targets(*map(torch.from_numpy, (boxes, labels, difficult, valid))))
    return Labels(
        boxes,
        labels,
        difficult,
        valid,
        matched=matches.boxes.numpy(),
        classes=matches.classes.numpy(),
        offsets=matches.offsets.numpy(),
        samples=np.array([example.sample for example in sound], np.int64),
        indices=np.array([example.place for example in sound], np.int64),
    )
