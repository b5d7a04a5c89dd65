"""The tables of the page on the detections: classes, kinds of errors, the confusion matrix."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int64

from multibox.evaluation.confidence import ThresholdCurve
from multibox.evaluation.errors import KINDS
from multibox.evaluation.found_objects import Groups
from multibox.reporting.evaluated import EvaluatedSplit
from multibox.reporting.galleries import NOUNS
from multibox.reporting.incidents import Gallery
from multibox.reporting.record import METRICS, Evaluation, Record
from multibox.reporting.reference import Reference
from multibox.reporting.series import Series
from multibox.reporting.tables import Cell
from multibox.reporting.text import ABSENT, decimals
from multibox.reporting.training_data import group_names

SHOWN_THRESHOLDS = [place / 100 for place in range(101)]


class ErrorBar(NamedTuple):
    """A kind of error.

    Attributes:
        kind: Its key.
        name: Its name.
        cost: Average precision that it costs, 0..1.
        share: The cost by that of the costliest kind, 0..1.
        number: Number of errors that a user would see.
        gallery: Key of their gallery.
    """

    kind: str
    name: str
    cost: str
    share: float
    number: int
    gallery: str


class GroupBar(NamedTuple):
    """A group of objects: its name, the numbers of objects, and the gallery of those missed."""

    name: str
    found: int
    missed: int
    recall: str
    share_found: float
    share_missed: float
    gallery: str


def class_header(reference: Reference | None) -> list[str]:
    """Returns the titles of the columns of `class_rows`, without that of the classes."""
    beside = ["Reference", "Difference"] if reference else []
    scores = ["Threshold", "Precision", "Recall", "F1", "Right", "Wrong", "Missed"]
    return [*(f"AP {name}" for name in METRICS.values()), *beside, *scores, "Trained on"]


def class_rows(
    record: Record,
    evaluation: Evaluation,
    split: EvaluatedSplit | None,
    reference: Reference | None,
) -> list[tuple[str, list[Cell]]]:
    """Returns name and cells of each class, and last of all classes together."""
    theirs = {} if reference is None else {name: aps[-1] for name, aps in reference.AP.items()}
    rows = []
    for label, name in enumerate(record.about.classes):
        aps = {metric: evaluation.classes[metric].get(name, math.nan) for metric in METRICS}
        curve = split.analysis.thresholds.get(name) if split else None
        cells = _precision_cells(aps, reference, theirs.get(name, math.nan))
        cells += _threshold_cells(curve, f"class-{label}")
        rows.append((name, [*cells, Cell(f"{record.about.train.objects.get(name, 0):,}")]))
    mean = reference.mAP[-1] if reference else math.nan
    cells = _precision_cells(evaluation.mean, reference, mean)
    cells += _threshold_cells(split.analysis.all_thresholds if split else None, "")
    total = sum(record.about.train.objects.values())
    return [*rows, ("all", [*cells, Cell(f"{total:,}")])]


def _precision_cells(
    aps: Mapping[str, float], reference: Reference | None, other: float
) -> list[Cell]:
    cells = [Cell(decimals(aps[metric])) for metric in METRICS]
    if reference:
        gap = decimals(aps[reference.metric] - other, signed=True)
        cells += [Cell(decimals(other)), Cell(gap)]
    return cells


def _threshold_cells(curve: ThresholdCurve | None, key: str) -> list[Cell]:
    best = curve.best() if curve else None
    if curve is None or best is None:
        missed = Cell(f"{curve.num_objects:,}" if curve else ABSENT, f"{key}-missed" if key else "")
        return [*[Cell(ABSENT)] * 6, missed]
    shares = (best.precision, best.recall, best.f1)
    counts = {"right": best.right, "wrong": best.wrong, "missed": best.missed}
    return [
        Cell(decimals(best.threshold, places=2)),
        *(Cell(decimals(share, places=3)) for share in shares),
        *(Cell(f"{n:,}", f"{key}-{word}" if key and n else "") for word, n in counts.items()),
    ]


def error_bars(split: EvaluatedSplit, galleries: Mapping[str, Gallery]) -> list[ErrorBar]:
    """Returns the kinds of errors, the costliest first."""
    costs = split.analysis.errors.costs
    most = max([*costs.values(), 1e-9])
    bars = []
    for kind in sorted(KINDS, key=lambda kind: -costs[kind]):
        key = f"kind-{kind}"
        count = galleries[key].total
        cost = decimals(costs[kind], places=3)
        bars.append(ErrorBar(kind, NOUNS[kind], cost, costs[kind] / most, count, key))
    return bars


def confusion_rows(split: EvaluatedSplit) -> list[tuple[str, list[Cell]]]:
    """Returns a row of cells for each annotated class, and for what is not annotated."""
    matrix = split.analysis.confusion
    names = [*matrix.classes, "not annotated"]
    rows = []
    for row, (name, counts) in enumerate(zip(names, matrix.counts.tolist(), strict=True)):
        total = max(1, sum(counts))
        cells = [
            Cell(f"{n:,}" if n else "", f"cell-{row}-{column}" if n else "", n / total)
            for column, n in enumerate(counts)
        ]
        rows.append((name, cells))
    return rows


def size_bars(groups: Groups) -> list[GroupBar]:
    """Returns how many objects of each size are found."""
    return _bars(group_names(groups.limits, "px"), groups, "size")


def shape_bars(groups: Groups) -> list[GroupBar]:
    """Returns how many objects of each ratio of width to height are found."""
    return _bars(group_names(groups.limits, ""), groups, "aspect")


def _bars(names: Sequence[str], groups: Groups, key: str) -> list[GroupBar]:
    found, missed = groups.found.sum(axis=0), groups.missed.sum(axis=0)
    most = max(1, int((found + missed).max()))
    return [
        GroupBar(
            name, ok, bad, _recall(ok, bad), ok / most, bad / most, f"{key}-{place}" if bad else ""
        )
        for place, (name, ok, bad) in enumerate(
            zip(names, found.tolist(), missed.tolist(), strict=True)
        )
        if ok + bad
    ]


def _recall(found: int, missed: int) -> str:
    return f"{found / (found + missed):.0%}" if found + missed else ABSENT


def position_rows(
    found: Int64[np.ndarray, "C R R"], missed: Int64[np.ndarray, "C R R"]
) -> list[list[Cell]]:
    """Returns the share of missed objects in each part of the image."""
    ok, bad = found.sum(axis=0).tolist(), missed.sum(axis=0).tolist()
    return [
        [
            Cell(
                f"{b} of {a + b}" if a + b else "",
                f"position-{row}-{column}" if b else "",
                b / (a + b) if a + b else 0.0,
            )
            for column, (a, b) in enumerate(zip(*pair, strict=True))
        ]
        for row, pair in enumerate(zip(ok, bad, strict=True))
    ]


def threshold_series(split: EvaluatedSplit) -> list[Series]:
    """Returns precision, recall and F1 over the threshold, and F1 of each class."""
    curve = split.analysis.all_thresholds
    parts: dict[str, dict[float, float]] = {"precision": {}, "recall": {}, "F1": {}}
    for threshold in SHOWN_THRESHOLDS:
        point = curve.at(threshold)
        parts["precision"][threshold] = point.precision
        parts["recall"][threshold] = point.recall
        parts["F1"][threshold] = point.f1
    lines = [Series(name, points) for name, points in parts.items()]
    for name, of_class in split.analysis.thresholds.items():
        f1 = {threshold: of_class.at(threshold).f1 for threshold in SHOWN_THRESHOLDS}
        lines.append(Series(f"F1 of {name}", f1, True, False))
    return lines
