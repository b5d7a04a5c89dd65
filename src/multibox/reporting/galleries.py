"""The galleries of the page: lists of places behind its numbers.

The first entries of a gallery are the ones that a reader should see first: the most confident
detections, and the largest missed objects.
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Bool, Int64

from multibox.evaluation.errors import KINDS, ErrorKind
from multibox.evaluation.found_objects import GRID, measure_objects
from multibox.evaluation.pooled import pool_detections
from multibox.inference import sizes_px
from multibox.reporting.doubtful_labels import FAINT, compare, urgency
from multibox.reporting.evaluated import EvaluatedSplit
from multibox.reporting.incidents import LISTED, Gallery, Incident, areas_px2, incident
from multibox.reporting.pictures import Mark
from multibox.structures import Detections

NOUNS: dict[ErrorKind, str] = {
    "classification": "Wrong class",
    "localization": "Inaccurate box",
    "both": "Wrong class and inaccurate box",
    "duplicate": "Second detection of an object",
    "background": "Detection of the background",
    "missed": "Missed object",
}


def galleries(split: EvaluatedSplit) -> dict[str, Gallery]:
    """Returns the galleries by key, those of most interest first.

    The keys are `kind-<kind>`, `doubt-<kind>`, `worst`, `class-<class>-right`, `-wrong` and
    `-missed`, `cell-<row>-<column>`, `size-<group>`, `aspect-<group>` and
    `position-<row>-<column>`; classes, rows, columns and groups are numbers.
    """
    return {
        **dict(_kinds(split)),
        **dict(_doubts(split)),
        "worst": _worst(split),
        **dict(_classes(split)),
        **dict(_cells(split)),
        **dict(_missed_groups(split)),
    }


def _kinds(split: EvaluatedSplit) -> Iterator[tuple[str, Gallery]]:
    threshold = split.analysis.score_threshold
    for kind in KINDS:
        rows = split.analysis.errors.rows[kind]
        if kind == "missed":
            order = np.argsort(-areas_px2(split, rows.object_classes, rows.objects), kind="stable")
        else:
            # An error below the threshold is not shown to users of the detector.
            chosen = np.flatnonzero(rows.scores >= threshold)
            order = chosen[np.argsort(-rows.scores[chosen], kind="stable")]
        incidents = [
            incident(
                split,
                int(rows.images[row]),
                (int(rows.detection_classes[row]), int(rows.detections[row])),
                # The nearest object has nothing to do with a detection of the background.
                (int(rows.object_classes[row]), int(rows.objects[row]))
                if kind != "background"
                else (-1, -1),
                float(rows.overlaps[row]),
            )
            for row in order[:LISTED].tolist()
        ]
        yield f"kind-{kind}", Gallery(NOUNS[kind], len(order), incidents)


def _doubts(split: EvaluatedSplit) -> Iterator[tuple[str, Gallery]]:
    titles = {
        "missing-label": "Detected, but not annotated",
        "other-class": "Annotated as another class",
        "not-found": "Annotated, but not detected even with a low score",
    }
    dataset = split.dataset
    found = sorted(
        (
            (urgency(doubt), place, doubt)
            for place, detections in enumerate(_per_image(split))
            for doubt in compare(dataset.annotations[place], [detections], dataset.classes)
        ),
        key=lambda entry: entry[:2],
    )
    for kind, title in titles.items():
        of_kind = [(place, doubt) for _, place, doubt in found if doubt.kind == kind]
        incidents = [
            Incident(
                place,
                doubt.describe(),
                extra=Mark(
                    doubt.box_px,
                    "object" if kind == "not-found" else "detection",
                    doubt.annotated or "" if kind == "not-found" else doubt.detected or "",
                    focus=True,
                ),
            )
            for place, doubt in of_kind[:LISTED]
        ]
        yield f"doubt-{kind}", Gallery(title, len(of_kind), incidents)


def _per_image(split: EvaluatedSplit) -> Iterator[Detections]:
    """Yields the detections in each image that are not faint, by descending score."""
    found = pool_detections(split.detections, split.objects, score_threshold=FAINT)
    frames = np.tile(sizes_px(split.dataset)[:, ::-1], 2)
    limits = np.searchsorted(found.images, np.arange(len(split.dataset) + 1))
    table = Detections(
        torch.from_numpy(found.boxes_px / frames[found.images]).float(),
        torch.from_numpy(found.scores).float(),
        torch.from_numpy(found.classes),
    )
    for start, end in zip(limits[:-1].tolist(), limits[1:].tolist(), strict=True):
        yield Detections(*(column[start:end] for column in table))


def _worst(split: EvaluatedSplit) -> Gallery:
    """Returns whole images, those with the most wrong detections and missed objects first."""
    entries = split.analysis.confusion.entries
    wrong = entries.rows != entries.columns
    missed = entries.columns == len(split.objects)
    size = len(split.dataset)
    counts = np.bincount(entries.images[wrong & ~missed], minlength=size)
    misses = np.bincount(entries.images[missed], minlength=size)
    order = np.argsort(-(counts + misses), kind="stable")
    order = order[(counts + misses)[order] > 0]
    incidents = [
        Incident(image, f"{counts[image]} wrong, {misses[image]} missed")
        for image in order[: LISTED // 2].tolist()
    ]
    return Gallery("Images with errors", len(order), incidents)


def _classes(split: EvaluatedSplit) -> Iterator[tuple[str, Gallery]]:
    for label, (name, verdicts) in enumerate(split.analysis.verdicts.items()):
        best = split.analysis.thresholds[name].best()
        shown = verdicts.counts & (verdicts.scores >= (best.threshold if best else np.inf))
        for word, chosen in (
            ("right", shown & verdicts.right),
            ("wrong", shown & ~verdicts.right),
        ):
            rows = np.flatnonzero(chosen)
            incidents = [
                incident(
                    split,
                    int(verdicts.images[row]),
                    (label, int(verdicts.order[row])),
                    (label, int(verdicts.hit[row])),
                )
                for row in rows[:LISTED].tolist()
            ]
            title = f"{name}: {word} detections"
            yield f"class-{label}-{word}", Gallery(title, len(rows), incidents)
        of_class = split.objects[name]
        found = np.zeros(len(of_class.images), dtype=bool)
        found[verdicts.hit[shown & verdicts.right]] = True
        missed = np.flatnonzero(~found & ~of_class.difficult)
        title = f"{name}: missed objects"
        gallery = _missed_gallery(split, title, np.full(len(missed), label), missed)
        yield f"class-{label}-missed", gallery


def _missed_gallery(
    split: EvaluatedSplit,
    title: str,
    labels: Int64[np.ndarray, " E"],
    places: Int64[np.ndarray, " E"],
) -> Gallery:
    order = np.argsort(-areas_px2(split, labels, places), kind="stable")
    names = list(split.objects)
    incidents = []
    for row in order[:LISTED].tolist():
        item = int(labels[row]), int(places[row])
        image = int(split.objects[names[item[0]]].images[item[1]])
        incidents.append(incident(split, image, (-1, -1), item))
    return Gallery(title, len(labels), incidents)


def _cells(split: EvaluatedSplit) -> Iterator[tuple[str, Gallery]]:
    """Yields the cells of the confusion matrix, except the right ones, by descending count."""
    matrix = split.analysis.confusion
    entries, names = matrix.entries, [*matrix.classes, "background"]
    size = len(names)
    scores = np.zeros(len(entries.rows))
    for label, name in enumerate(matrix.classes):
        mine = entries.columns == label
        scores[mine] = split.detections[name].scores[entries.detections[mine]]
    cell = entries.rows * size + entries.columns
    order = np.lexsort((-scores, cell))
    limits = np.searchsorted(cell[order], np.arange(size * size + 1))
    counts = np.diff(limits)
    for number in np.argsort(-counts, kind="stable").tolist():
        row, column = divmod(number, size)
        if not counts[number]:
            continue
        chosen = order[limits[number] : limits[number + 1]][: LISTED // 2]
        incidents = [
            incident(
                split,
                int(entries.images[entry]),
                (column if column < size - 1 else -1, int(entries.detections[entry])),
                (row if row < size - 1 else -1, int(entries.objects[entry])),
            )
            for entry in chosen.tolist()
        ]
        title = f"{names[row]} detected as {names[column]}"
        if column == size - 1:
            title = f"{names[row]} not detected"
        elif row == size - 1:
            title = f"{names[column]} detected where nothing is annotated"
        yield f"cell-{row}-{column}", Gallery(title, int(counts[number]), incidents)


def _missed_groups(split: EvaluatedSplit) -> Iterator[tuple[str, Gallery]]:
    """Yields the missed objects by size, by shape and by position."""
    analysis = split.analysis
    table = measure_objects(
        analysis.verdicts,
        split.objects,
        sizes_px(split.dataset),
        score_threshold=analysis.score_threshold,
    )
    groups = analysis.found_objects
    size = np.digitize(table.sides, groups.sizes.limits[1:-1])
    aspect = np.digitize(table.aspects, groups.aspects.limits[1:-1])

    def gallery(what: str, chosen: Bool[np.ndarray, " E"]) -> Gallery:
        missed = chosen & ~table.found
        title = f"Missed objects {what}"
        return _missed_gallery(split, title, table.labels[missed], table.places[missed])

    for number in range(len(groups.sizes.limits) - 1):
        yield f"size-{number}", gallery("of this size", size == number)
    for number in range(len(groups.aspects.limits) - 1):
        yield f"aspect-{number}", gallery("of this shape", aspect == number)
    for number in range(GRID * GRID):
        row, column = divmod(number, GRID)
        yield f"position-{row}-{column}", gallery("in this part", table.cells == number)
