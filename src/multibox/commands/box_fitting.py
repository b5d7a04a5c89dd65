"""Fits the sizes and ratios of default boxes to the objects of a training split (`--fit-boxes`).

The fit changes one size for each level, and the ratios, which all levels share. It keeps the
feature maps and the number of boxes of a cell, so the heads keep their shapes.

A pattern search makes one value after the other larger or smaller, and keeps a change if the boxes
overlap the objects better. Sizes are whole pixels, ratios have two decimals, and sums are made of
whole numbers. So rounding errors do not decide, and a resumed run finds the same boxes.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int64
from rich.console import Console
from rich.table import Table
from torch import Tensor

from multibox.boxes import best_iou, evenly_spaced, to_cxcywh
from multibox.build import NETWORKS, levels_to_choose
from multibox.config import Config
from multibox.data.check.statistics import MEASURED, REACH
from multibox.data.dataset import Annotation, Dataset
from multibox.data.pipeline import TrainingExamples
from multibox.ssd.default_boxes import Level, default_boxes

_DRAWS = 2_000
"""Number of augmented images that the fit looks at."""
_AUGMENTED = 3_000
"""Largest number of their objects that the fit looks at."""

# Weights of the three groups of objects: those of the split, the same after augmentation, and
# objects of all sizes. The last keep a default box near every size, because an image that the
# training split lacks may show an object of that size.
_WEIGHTS = (0.6, 0.3, 0.1)

_FACTORS = (1.3, 1.15, 1.07, 1.03)
"""Factors by which the search changes a value, one after the other."""
_ROUNDS = 20
"""Largest number of rounds over all values with one factor."""
_LEAST_PX = 4.0
_LARGEST = 1.25
"""Largest size, as a multiple of the input's longer side."""
_RATIOS = (0.13, 8.0)
_PARTS = 2**20
"""IoUs are added up as whole numbers of parts, so that the order of the sum has no effect."""
_PENALTY = 10.0
"""Weight of the loss if the split's objects are overlapped less than by the network's own boxes."""


class Overlap(NamedTuple):
    """How well default boxes overlap objects.

    Attributes:
        share: Share in 0..1 of the objects with a default box at an IoU of `REACH`.
        mean: Mean of the objects' best IoU, 0..1.
    """

    share: float
    mean: float


class Fit(NamedTuple):
    """Default boxes that were fitted to objects.

    Attributes:
        levels: The fitted levels, or the network's own if none overlap the objects better.
        objects: Number of objects. Of more than 5,000, an evenly spaced part is compared.
        overlap: The overlap of `levels` with the objects.
        before: The overlap of the network's own levels.
    """

    levels: tuple[Level, ...]
    objects: int
    overlap: Overlap
    before: Overlap


def fit_levels(
    objects: Float[Tensor, "M 4"],
    augmented: Float[Tensor, "N 4"],
    tables: Sequence[tuple[Level, ...]],
    image_size_px: tuple[int, int],
) -> Fit:
    """Returns levels that overlap objects at least as well as the network's own, by both measures.

    Args:
        objects: xyxy in the unit frame, as annotated; M is at least 1.
        augmented: The same after random augmentations; N may be 0.
        tables: Levels to start from. The first are the network's own.
        image_size_px: (height, width) of the network's input.
    """
    measured = evenly_spaced(objects, MEASURED)
    own = overlap(measured, tables[0], image_size_px)
    groups = [measured, evenly_spaced(augmented, _AUGMENTED), _spread_objects()]
    search = _Search(groups, tables[0], image_size_px, own)
    best, after, score = tables[0], own, search.score(search.best_of(tables[0]))
    for levels in (*tables[1:], *map(search.run, tables)):
        found = overlap(measured, levels, image_size_px)
        rank = search.score(search.best_of(levels))
        if rank > score and found.share >= own.share and found.mean >= own.mean:
            best, after, score = levels, found, rank
    return Fit(best, len(objects), after, own)


def overlap(
    objects: Float[Tensor, "M 4"], levels: Sequence[Level], image_size_px: tuple[int, int]
) -> Overlap:
    """Returns how well the default boxes of levels overlap objects, as `check` counts it."""
    best = best_iou(objects, default_boxes(levels, image_size_px))
    share = int((best >= REACH).sum()) / len(best)
    return Overlap(share, math.fsum(best.tolist()) / len(best))


def _spread_objects() -> Float[Tensor, "S 4"]:
    """Returns boxes with ratios of 1/2, 1 and 2 and all sizes from 1/16 to 1 of the image's side.

    They are xyxy in the unit frame, at fixed positions all over the image.
    """
    boxes = []
    for place in range(60):
        size, ratio = 2 ** (-4 * (place + 0.5) / 60), (0.5, 1.0, 2.0)[place % 3]
        width, height = min(1, size * math.sqrt(ratio)), min(1, size / math.sqrt(ratio))
        for turn in range(3):
            left = (place * 7 + turn * 5) % 11 / 10 * (1 - width)
            top = (place * 3 + turn * 8) % 13 / 12 * (1 - height)
            boxes.append((left, top, left + width, top + height))
    return torch.tensor(boxes, dtype=torch.float32)


class _Search:
    """A pattern search over the sizes and ratios of levels.

    Args:
        groups: The objects, xyxy in the unit frame, one tensor for each of `_WEIGHTS`.
        levels: The levels of the network. Their cells and numbers of ratios are kept.
        image_size_px: (height, width) of the input.
        least: The overlap with the first group that the search must not fall below.
    """

    def __init__(
        self,
        groups: Sequence[Float[Tensor, "_ 4"]],
        levels: Sequence[Level],
        image_size_px: tuple[int, int],
        least: Overlap,
    ) -> None:
        self._levels, self._least = levels, least
        self._largest = _LARGEST * max(image_size_px)
        self._counts = [len(group) for group in groups]
        size = torch.tensor(image_size_px[::-1], dtype=torch.float64)
        boxes = to_cxcywh(torch.cat([*groups]).double()) * size.repeat(2)
        # x and y come first: planes in memory, which are several times faster than pairs.
        self._sides = boxes[:, 2:].T.float().contiguous().unsqueeze(-1)
        self._away = [
            _away(boxes[:, :2], level).T.float().contiguous().unsqueeze(-1) for level in levels
        ]

    def run(self, start: Sequence[Level]) -> tuple[Level, ...]:
        """Returns the best levels that a search from `start` finds."""
        others = max(([r for r in level.ratios if r != level.doubled] for level in start), key=len)
        last = start[-1].max_size_px or start[-1].min_size_px + 1
        sizes = [*(level.min_size_px for level in start), last]
        values = [*map(float, (*map(round, sizes), *others, start[0].doubled))]
        best = self.best_of(self._with(values))
        score = self.score(best)
        for factor in _FACTORS:
            for _ in range(_ROUNDS):
                before = score
                for trial in self._neighbours(values, factor):
                    levels = self._with(trial)
                    ious = torch.stack(
                        [
                            row if new == old else self._best(place, new)
                            for place, (row, old, new) in enumerate(
                                zip(best, self._with(values), levels, strict=True)
                            )
                        ]
                    )
                    if (found := self.score(ious)) > score:
                        values[:], best, score = trial, ious, found
                if score == before:
                    break
        return self._with(values)

    def _neighbours(self, values: list[float], factor: float) -> Iterator[list[float]]:
        """Yields the values with one changed, each time from what `values` contains then."""
        sizes = len(self._levels) + 1
        for place in range(len(values)):
            for change in (factor, 1 / factor):
                trial = list(values)
                if place < sizes:
                    moved = float(round(trial[place] * change))
                    trial[place] = moved + (moved == values[place]) * (1 if change > 1 else -1)
                else:
                    trial[place] = round(trial[place] * change, 2)
                if self._allows(trial[:sizes], trial[sizes:]):
                    yield trial

    def _allows(self, sizes: list[float], ratios: list[float]) -> bool:
        rising = all(low < high for low, high in pairwise(sizes))
        inside = sizes[0] >= _LEAST_PX and sizes[-1] <= self._largest
        low, high = _RATIOS
        apart = len(set(ratios)) == len(ratios)
        return rising and inside and apart and all(low <= ratio <= high for ratio in ratios)

    def _with(self, values: Sequence[float]) -> tuple[Level, ...]:
        """Returns levels with sizes, ratios and the doubled ratio from `values`, in this order."""
        sizes, doubled = values[: len(self._levels) + 1], values[-1]
        made = []
        for level, low, high in zip(self._levels, sizes[:-1], sizes[1:], strict=True):
            others = iter(values[len(sizes) : -1])
            ratios = [doubled if r == level.doubled else next(others) for r in level.ratios]
            maximum = None if level.max_size_px is None else high
            made.append(
                level._replace(
                    min_size_px=low, max_size_px=maximum, ratios=tuple(ratios), doubled=doubled
                )
            )
        return tuple(made)

    def best_of(self, levels: Sequence[Level]) -> Float[Tensor, "L M"]:
        """Returns each object's best IoU with the default boxes of each level."""
        return torch.stack([self._best(place, level) for place, level in enumerate(levels)])

    def _best(self, place: int, level: Level) -> Float[Tensor, " M"]:
        """Returns each object's best IoU with a level's boxes.

        Of the boxes of one shape, the one with the nearest centre overlaps most.
        """
        shapes = torch.tensor(level.shapes_px(whole_scales=True)).T.unsqueeze(1)
        reach = (self._sides + shapes).div_(2).sub_(self._away[place])
        shared = torch.minimum(torch.minimum(self._sides, shapes), reach).clamp_(min=0)
        both = shared[0] * shared[1]
        union = (self._sides[0] * self._sides[1] + shapes[0] * shapes[1]).sub_(both)
        return both.div_(union).amax(dim=1)

    def score(self, ious: Float[Tensor, "L M"]) -> float:
        """Returns the weighted mean over the groups of share plus mean IoU, minus the penalty."""
        parts = torch.split((ious.amax(dim=0) * _PARTS).long(), self._counts)
        found = [_overlap_of(part) for part in parts]
        weights = [w if len(part) else 0.0 for w, part in zip(_WEIGHTS, parts, strict=True)]
        total = sum(weight * sum(each) for weight, each in zip(weights, found, strict=True))
        lost = [max(0.0, a - b) for a, b in zip(self._least, found[0], strict=True)]
        return total / sum(weights) - _PENALTY * sum(lost)


def _away(centres: Float[Tensor, "M 2"], level: Level) -> Float[Tensor, "M 2"]:
    """Returns how far the nearest centre of a level's boxes is, across and down, in pixels."""
    step = centres.new_tensor(level.step_px[::-1])
    last = centres.new_tensor(level.cells[::-1]) - 1
    nearest = torch.minimum((centres / step).floor().clamp(min=0), last)
    return ((nearest + 0.5) * step - centres).abs()


def _overlap_of(parts: Int64[Tensor, " M"]) -> Overlap:
    count = max(1, len(parts))
    share = int((parts >= REACH * _PARTS).sum()) / count
    return Overlap(share, int(parts.sum()) / _PARTS / count)


def fitted_levels(config: Config, train_set: Dataset, console: Console) -> tuple[Level, ...]:
    """Fits a run's default boxes to its training split, and prints how well they overlap objects.

    Args:
        config: The configuration of the run.
        train_set: The training split.
        console: The console to print to.

    Returns:
        The levels. Empty if the configuration does not ask for a fit, or if the network's own
        default boxes overlap the objects best.
    """
    if not config.fit_boxes:
        return ()
    tables, size = levels_to_choose(config), NETWORKS[config.network].image_size_px
    objects, augmented = _objects(config, train_set, size)
    if not len(objects):
        console.print("note: all objects are difficult, so no default boxes are fitted")
        return ()
    fit = fit_levels(objects, augmented, tables, size)
    share, before = fit.overlap.share, fit.before.share
    console.print(
        f"Default boxes fitted to {fit.objects} objects: {100 * share:.1f} % have a default box at "
        f"an IoU of {REACH:g} (own boxes: {100 * before:.1f} %), mean best IoU "
        f"{fit.overlap.mean:.2f} ({fit.before.mean:.2f})",
        highlight=False,
        soft_wrap=True,
    )
    if fit.levels == tables[0]:
        console.print("note: the network's own default boxes are used, because none fit better")
        return ()
    console.print(_table(fit.levels))
    return fit.levels


def _objects(
    config: Config, train_set: Dataset, size_px: tuple[int, int]
) -> tuple[Float[Tensor, "M 4"], Float[Tensor, "N 4"]]:
    """Returns the trained objects of a split, as annotated and augmented, xyxy in the unit frame.

    The augmentation is the run's, but the same for every seed.
    """
    annotations = train_set.annotations
    examples = TrainingExamples(annotations, size_px, config.augmentation, seed=0)

    def trained(annotation: Annotation) -> Bool[np.ndarray, " M"]:
        return ~annotation.difficult | config.data.train_difficult

    plain = [item.boxes[trained(item)] for item in annotations]
    drawn = map(examples.decide, range(_DRAWS))
    changed = [one.boxes[trained(annotations[one.place])[one.kept]] for one in drawn]
    return torch.from_numpy(np.concatenate(plain)), torch.from_numpy(np.concatenate(changed))


def _table(levels: Sequence[Level]) -> Table:
    table = Table("map", "sizes (px)", "ratios of width to height")
    for level in levels:
        both = level.max_size_px is not None
        ratios = [
            f"{r:.3g}" + " (both sizes)" * (both and r == level.doubled) for r in level.ratios
        ]
        rows, columns = level.cells
        sizes = f"{level.min_size_px:.0f}"
        if level.max_size_px is not None:
            sizes += f", {math.sqrt(level.min_size_px * level.max_size_px):.0f}"
        table.add_row(f"{rows} x {columns}", sizes, ", ".join(ratios))
    return table
