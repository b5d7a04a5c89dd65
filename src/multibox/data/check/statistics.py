"""Counts of a dataset: images, objects, sizes, and which boxes no default box comes near."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float32, Float64
from torch import Tensor

from multibox.boxes import pairwise_iou
from multibox.data.dataset import Dataset

SIZE_EDGES_PX = (8, 16, 32, 64, 128, 256)
"""Between the size classes. A box's size is the root of its area in the network's input."""
REACH = 0.5
"""IoU from which an object has default boxes of its own accord; below, only the best one is
forced on it (SSD section 2.2)."""

_MEASURED = 5000
_AT_A_TIME = 128


class BoxTable(NamedTuple):
    """The default boxes of a network.

    Attributes:
        network: The network's name.
        scales: The table's name: `voc` or `coco`, as `--default-boxes` has it.
        input_px: (height, width) of the network's input.
        boxes: xyxy in the unit frame.
    """

    network: str
    scales: str
    input_px: tuple[int, int]
    boxes: Float[Tensor, "K 4"]


@dataclass(frozen=True)
class Reach:
    """How near a network's default boxes come to the objects of a split.

    Attributes:
        network: The network's name.
        default_boxes: Its table: `voc` or `coco`, as `--default-boxes` has it.
        objects: How many objects were measured, evenly picked where there are very many.
        forced: Share of them with no default box at an IoU of `REACH`; 0 where there is none.
        forced_by_size: That share in each size class; None where a class has no object.
    """

    network: str
    default_boxes: str
    objects: int
    forced: float
    forced_by_size: tuple[float | None, ...]


@dataclass(frozen=True)
class Sizes:
    """How large the boxes of a split are in a network's input.

    Attributes:
        input_px: (height, width) of that input.
        smallest_px: Size of the smallest; 0 where there is none, and so for the others.
        median_px: Of the one in the middle.
        largest_px: Of the largest.
        share_by_size: Share of objects in each size class.
    """

    input_px: tuple[int, int]
    smallest_px: float
    median_px: float
    largest_px: float
    share_by_size: tuple[float, ...]


@dataclass(frozen=True)
class ClassCount:
    """A class in a split.

    Attributes:
        objects: Its objects, difficult ones included.
        difficult: Those that are difficult.
        images: The images that show it.
    """

    objects: int
    difficult: int
    images: int


@dataclass(frozen=True)
class SplitStatistics:
    """The counts of a split.

    Attributes:
        images: Its images.
        empty_images: Those without an object.
        objects: Its objects.
        difficult: Those that are difficult.
        imbalance: Objects of the most frequent class over those of the rarest; 0 without any.
        classes: By name.
        sizes: For each size of input.
        reach: For each table of default boxes.
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
    """Returns the counts of a split.

    Args:
        dataset: The split.
        tables: The default boxes that its objects are compared with.
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
    """Returns how many sizes are in each class."""
    places = np.searchsorted(SIZE_EDGES_PX, size_px, side="right")
    return np.bincount(places, minlength=len(SIZE_EDGES_PX) + 1).astype(np.float64)


def _reach(boxes: Float32[np.ndarray, "M 4"], table: BoxTable) -> Reach:
    picked = np.linspace(0, len(boxes) - 1, min(len(boxes), _MEASURED)).round().astype(int)
    boxes = boxes[picked]
    # In parts, because a table against all objects would fill the memory.
    best = [
        pairwise_iou(torch.from_numpy(boxes[start : start + _AT_A_TIME]), table.boxes).amax(dim=1)
        for start in range(0, len(boxes), _AT_A_TIME)
    ]
    forced = torch.cat([torch.zeros(0), *best]).numpy() < REACH
    size = _size_px(boxes, table.input_px)
    by_size = [
        part / whole if whole else None
        for part, whole in zip(_counts(size[forced]).tolist(), _counts(size).tolist(), strict=True)
    ]
    share = float(forced.mean()) if len(forced) else 0.0
    return Reach(table.network, table.scales, len(boxes), share, tuple(by_size))
