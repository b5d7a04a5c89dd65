"""From examples, one image each, to a batch."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float32, Int64, UInt8
from torch import Tensor

from multibox.errors import MultiboxError
from multibox.structures import Batch, Targets

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
    """A batch but for its pixels: the fields of `Batch` and `Targets`, as arrays."""

    boxes: Float32[np.ndarray, "B M 4"]
    labels: Int64[np.ndarray, "B M"]
    difficult: Bool[np.ndarray, "B M"]
    valid: Bool[np.ndarray, "B M"]
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
        boxes, labels, difficult, valid, samples, indices = tensors
        # Interleaved pixels, seen as (B, 3, H, W), are what PyTorch calls channels_last: no copy.
        targets = Targets(boxes, labels, difficult, valid)
        return Batch(images.permute(0, 3, 1, 2), targets, samples, indices)


def collate(examples: Sequence[Example | MultiboxError]) -> Batch | MultiboxError:
    """Returns the batch of some examples, or the first error among them."""
    labels = label(examples)
    if isinstance(labels, MultiboxError):
        return labels
    images = [example.image for example in examples if isinstance(example, Example)]
    return labels.around(torch.from_numpy(np.stack(images)))


def label(examples: Sequence[Example | MultiboxError]) -> Labels | MultiboxError:
    """Returns the labels of some examples, or the first error among them."""
    sound: list[Example] = []
    for example in examples:
        if isinstance(example, MultiboxError):
            return example
        sound.append(example)
    size, most = len(sound), max(len(example.labels) for example in sound)
    found = Labels(
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
