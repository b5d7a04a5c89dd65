"""What the network saw: augmented samples, statistics of the objects, and matched default boxes."""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from multibox.boxes import best_iou, evenly_spaced
from multibox.build import NETWORKS, levels_to_choose
from multibox.config import Config
from multibox.data.dataset import Dataset
from multibox.data.pipeline import TrainingExamples
from multibox.errors import MultiboxError
from multibox.evaluation.found_objects import ASPECTS, GRID, SIDES_PX
from multibox.reporting.pictures import Mark, picture
from multibox.ssd.default_boxes import Level, default_boxes
from multibox.ssd.matching import match_boxes
from multibox.weights.files import read_fitted

SAMPLES = 12
"""Number of augmented samples that are shown."""

MATCHED = 256
"""Number of augmented samples for which the matched default boxes are counted."""

COMPARED = 5_000
"""Largest number of objects that are compared with the default boxes."""

_SIDE_PX = 220


class Bar(NamedTuple):
    """A group of objects: its name, their number, and the share of the largest group, 0..1."""

    name: str
    number: int
    share: float


class Shape(NamedTuple):
    """The default boxes of one shape.

    Attributes:
        cells: (rows, columns) of the feature map.
        width_px: Width in pixels of the network's input.
        height_px: Height in pixels of the network's input.
        matches: Number of matched default boxes per sample.
        share: Share of all matched default boxes, 0..1.
    """

    cells: tuple[int, int]
    width_px: float
    height_px: float
    matches: float
    share: float


class TrainingData(NamedTuple):
    """What the network saw in training.

    Attributes:
        samples: The first augmented samples as pictures for the page.
        sizes: The objects by the square root of their area in pixels of the network's input.
        aspects: The objects by width divided by height in the image.
        positions: int64 (5, 5), the objects by the row and column of their centre.
        per_image: The images by their number of objects.
        together: int64 (C, C), the images that show both classes; those that show a class on the
            diagonal.
        shapes: The shapes of default boxes, and how often they matched.
        forced: Share of the objects that no default box overlaps by 0.5, before augmentation.
        image_size_px: (height, width) of the network's input.
    """

    samples: list[dict[str, Any]]
    sizes: list[Bar]
    aspects: list[Bar]
    positions: Int64[np.ndarray, "5 5"]
    per_image: list[Bar]
    together: Int64[np.ndarray, "C C"]
    shapes: list[Shape]
    forced: float
    image_size_px: tuple[int, int]


def describe_training_data(dataset: Dataset, config: Config, fitted: object) -> TrainingData:
    """Returns what the network saw in training.

    Args:
        dataset: The training split.
        config: The configuration of the run.
        fitted: The fitted default boxes in run.json; None or empty if there are none.

    Raises:
        MultiboxError: An image cannot be read.
        ValueError: The fitted default boxes are not those of the network.
    """
    architecture = NETWORKS[config.network]
    size, traits = architecture.image_size_px, architecture.traits
    levels = read_fitted(fitted or [], architecture) or levels_to_choose(config)[0]
    table = default_boxes(levels, size, traits.clip, whole_scales=traits.whole_scales)
    items = dataset.annotations
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(item.boxes for item in items)])
    boxes_px = np.concatenate([np.zeros((0, 4), np.float32), *(item.boxes_px for item in items)])
    sides = (boxes[:, 2:] - boxes[:, :2]).astype(np.float64)
    width, height = (boxes_px[:, 2:] - boxes_px[:, :2]).astype(np.float64).T
    centres = (GRID * (boxes[:, :2] + boxes[:, 2:]) / 2).astype(np.int64).clip(0, GRID - 1)
    positions = np.zeros((GRID, GRID), np.int64)
    np.add.at(positions, (centres[:, 1], centres[:, 0]), 1)
    shown = np.zeros((len(items), len(dataset.classes)), np.int64)
    for place, item in enumerate(items):
        shown[place, item.labels] = 1
    examples = TrainingExamples(items, size, config.augmentation, config.run.seed)
    measured = evenly_spaced(torch.from_numpy(boxes), COMPARED)
    forced = best_iou(measured, table) < 0.5 if len(measured) else torch.zeros(1)
    return TrainingData(
        _samples(examples, dataset.classes),
        _bars(np.sqrt(sides.prod(axis=1) * math.prod(size)), SIDES_PX, "px"),
        _bars(width / np.maximum(height, 1e-9), ASPECTS, ""),
        positions,
        _per_image(np.array([len(item.labels) for item in items])),
        shown.T @ shown,
        _shapes(examples, levels, whole_scales=traits.whole_scales, table=table, config=config),
        float(forced.double().mean()),
        size,
    )


def _samples(examples: TrainingExamples, classes: Sequence[str]) -> list[dict[str, Any]]:
    height, width = examples.image_size_px
    made = []
    for number in range(SAMPLES):
        example = examples[number]
        if isinstance(example, MultiboxError):
            raise example
        marks = [
            Mark((x0, y0, x1, y1), "object", classes[label])
            for (x0, y0, x1, y1), label in zip(
                (example.boxes * [width, height, width, height]).tolist(),
                example.labels.tolist(),
                strict=True,
            )
        ]
        made.append(picture(example.image, marks, side_px=_SIDE_PX))
    return made


def group_names(limits: Sequence[float], unit: str) -> list[str]:
    """Returns the names of groups between limits, such as `8 to 16 px` and `over 384 px`."""
    unit = f" {unit}" if unit else ""
    names = [f"{low:.3g} to {high:.3g}{unit}" for low, high in pairwise(limits)]
    return [f"under {limits[1]:.3g}{unit}", *names[1:-1], f"over {limits[-2]:.3g}{unit}"]


def _bars(values: Float64[np.ndarray, " M"], limits: Sequence[float], unit: str) -> list[Bar]:
    counts = np.bincount(np.digitize(values, limits[1:-1]), minlength=len(limits) - 1)
    return _shares(group_names(limits, unit), counts)


def _shares(names: Sequence[str], counts: Int64[np.ndarray, " B"]) -> list[Bar]:
    most = max(1, int(counts.max(initial=0)))
    return [Bar(name, n, n / most) for name, n in zip(names, counts.tolist(), strict=True)]


def _per_image(counts: Int64[np.ndarray, " I"]) -> list[Bar]:
    limits = [0, 1, 2, 3, 5, 10, 20, 50]
    names = ["none", "1", "2", "3 to 4", "5 to 9", "10 to 19", "20 to 49", "50 or more"]
    return _shares(names, np.bincount(np.digitize(counts, limits[1:]), minlength=len(limits)))


def _shapes(
    examples: TrainingExamples,
    levels: Sequence[Level],
    *,
    whole_scales: bool,
    table: Float[Tensor, "K 4"],
    config: Config,
) -> list[Shape]:
    """Returns how often each shape matches the objects of the first samples."""
    matched = []
    for number in range(MATCHED):
        decision = examples.decide(number)
        difficult = examples.annotations[decision.place].difficult[decision.kept]
        boxes = decision.boxes[~difficult | config.data.train_difficult]
        if len(boxes):
            image = torch.zeros(len(boxes), dtype=torch.int64)
            matched.append(match_boxes(table, torch.from_numpy(boxes), image)[0])
    counts = torch.bincount(
        torch.cat([torch.zeros(0, dtype=torch.int64), *matched]), minlength=len(table)
    )
    total, start, shapes = max(1, int(counts.sum())), 0, []
    for level in levels:
        cells = level.cells[0] * level.cells[1]
        sides = level.shapes_px(whole_scales=whole_scales)
        part = counts[start : start + cells * len(sides)].view(cells, len(sides)).sum(dim=0)
        start += cells * len(sides)
        shapes += [
            Shape(level.cells, width, height, count / MATCHED, count / total)
            for (width, height), count in zip(sides, part.tolist(), strict=True)
        ]
    return shapes
