"""Statistics of a dataset: images, objects, box sizes, and how well default boxes fit."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from multibox.boxes import best_iou, evenly_spaced
from multibox.data.dataset import Dataset

SIZE_EDGES_PX = (8, 16, 32, 64, 128, 256)
"""Limits between the size classes. The size of a box is the square root of its area, in pixels of
the network's input."""
REACH = 0.5
"""An object is matched to every default box with at least this IoU. If there is none, the best
default box is forced on it (SSD section 2.2)."""

MEASURED = 5000
"""Largest number of objects that are compared with default boxes."""


class BoxTable(NamedTuple):
    """The default boxes of a network.

    Attributes:
        network: The network's name.
        scales: The name of the table: `voc` or `coco`, as in `--default-boxes`.
        input_px: (height, width) of the network's input.
        boxes: xyxy as fractions of the input.
    """

    network: str
    scales: str
    input_px: tuple[int, int]
    boxes: Float[Tensor, "K 4"]


@dataclass(frozen=True)
class Reach:
    """How well a network's default boxes overlap the objects of a split.

    Attributes:
        network: The network's name.
        default_boxes: The name of its table: `voc` or `coco`, as in `--default-boxes`.
        objects: Number of objects compared. Of more than 5,000, an evenly spaced part is compared.
        forced: Share in 0..1 of the objects without a default box at an IoU of `REACH`. 0 if there
            are no objects.
        forced_by_size: The same share for each size class, or None for a class without objects.
    """

    network: str
    default_boxes: str
    objects: int
    forced: float
    forced_by_size: tuple[float | None, ...]


@dataclass(frozen=True)
class Sizes:
    """The sizes of the boxes of a split in a network's input. All are 0 if there are no boxes.

    Attributes:
        input_px: (height, width) of the network's input.
        smallest_px: Size of the smallest box.
        median_px: Median size.
        largest_px: Size of the largest box.
        share_by_size: Share in 0..1 of the objects in each size class.
    """

    input_px: tuple[int, int]
    smallest_px: float
    median_px: float
    largest_px: float
    share_by_size: tuple[float, ...]


@dataclass(frozen=True)
class ClassCount:
    """The counts of a class in a split.

    Attributes:
        objects: Number of objects, including difficult ones.
        difficult: Number of difficult objects.
        images: Number of images that show the class.
    """

    objects: int
    difficult: int
    images: int


@dataclass(frozen=True)
class SplitStatistics:
    """The statistics of a split.

    Attributes:
        images: Number of images.
        empty_images: Number of images without objects.
        objects: Number of objects, including difficult ones.
        difficult: Number of difficult objects.
        imbalance: Objects of the most frequent class divided by those of the rarest class. 0 if
            there are no classes.
        classes: The counts of each class by name.
        sizes: The box sizes for each network input size.
        reach: The overlap with each table of default boxes.
    """

    images: int
    empty_images: int
    objects: int
    difficult: int
    imbalance: float
    classes: dict[str, ClassCount]
    sizes: tuple[Sizes, ...]
    reach: tuple[Reach, ...]


def split_statistics(dataset: Dataset, tables: Sequence[BoxTable]) -> SplitStatistics:
    """Returns the statistics of a split.

    Args:
        dataset: The split.
        tables: The default boxes to compare its objects with.
    """
    items = dataset.annotations
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(item.boxes for item in items)])
    classes = _count_classes(dataset)
    counts = [count.objects for count in classes.values()]
    return SplitStatistics(
        images=len(items),
        empty_images=sum(len(item.labels) == 0 for item in items),
        objects=len(boxes),
        difficult=sum(count.difficult for count in classes.values()),
        imbalance=max(counts) / max(1, min(counts)) if counts else 0.0,
        classes=classes,
        sizes=tuple(_sizes(boxes, size) for size in dict.fromkeys(t.input_px for t in tables)),
        reach=tuple(_reach(boxes, table) for table in tables),
    )


def _count_classes(dataset: Dataset) -> dict[str, ClassCount]:
    counts = np.zeros((len(dataset.classes), 3), np.int64)
    for item in dataset.annotations:
        np.add.at(counts[:, 0], item.labels, 1)
        np.add.at(counts[:, 1], item.labels[item.difficult], 1)
        counts[np.unique(item.labels), 2] += 1
    return {
        name: ClassCount(*row) for name, row in zip(dataset.classes, counts.tolist(), strict=True)
    }


def _size_px(
    boxes: Float32[np.ndarray, "M 4"], input_px: tuple[int, int]
) -> Float64[np.ndarray, " M"]:
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    size: np.ndarray = np.sqrt(sides.prod(axis=1) * math.prod(input_px))
    return size


def _sizes(boxes: Float32[np.ndarray, "M 4"], input_px: tuple[int, int]) -> Sizes:
    size = _size_px(boxes, input_px)
    low, middle, high = np.quantile(size, (0, 0.5, 1)).tolist() if len(size) else (0.0, 0.0, 0.0)
    shares = _counts(size) / max(1, len(size))
    return Sizes(input_px, low, middle, high, tuple(shares.tolist()))


def _counts(size_px: Float64[np.ndarray, " M"]) -> Float64[np.ndarray, " S"]:
    """Returns the number of sizes in each size class."""
    places = np.searchsorted(SIZE_EDGES_PX, size_px, side="right")
    return np.bincount(places, minlength=len(SIZE_EDGES_PX) + 1).astype(np.float64)


def _reach(boxes: Float32[np.ndarray, "M 4"], table: BoxTable) -> Reach:
    measured = evenly_spaced(torch.from_numpy(boxes), MEASURED)
    boxes = measured.numpy()
    forced = best_iou(measured, table.boxes).numpy() < REACH
    size = _size_px(boxes, table.input_px)
    by_size = [
        part / whole if whole else None
        for part, whole in zip(_counts(size[forced]).tolist(), _counts(size).tolist(), strict=True)
    ]
    share = float(forced.mean()) if len(forced) else 0.0
    return Reach(table.network, table.scales, len(boxes), share, tuple(by_size))
