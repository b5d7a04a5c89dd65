"""The places in images behind the numbers of the page, with their boxes."""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64, Int64

from multibox.reporting.evaluated import EvaluatedSplit
from multibox.reporting.pictures import Box, Mark, as_box

LISTED = 24
"""Largest number of entries of a gallery."""

Place = tuple[int, int]
"""The label of a class, and the index in its detections or objects."""


class Incident(NamedTuple):
    """One place in an image.

    Attributes:
        image: The index of the image.
        caption: What is there, without the name of the image.
        detection: The detection, or None.
        object: The object, or None.
        extra: A box that is neither, such as that of a doubtful label, or None.
    """

    image: int
    caption: str
    detection: Place | None = None
    object: Place | None = None
    extra: Mark | None = None


class Gallery(NamedTuple):
    """The places behind a number.

    Attributes:
        title: What the number counts.
        total: The number.
        incidents: The first places, at most `LISTED`.
    """

    title: str
    total: int
    incidents: list[Incident]


def areas_px2(
    split: EvaluatedSplit, labels: Int64[np.ndarray, " E"], places: Int64[np.ndarray, " E"]
) -> Float64[np.ndarray, " E"]:
    """Returns the areas of objects; 0 where there is none.

    Args:
        split: The split.
        labels: int64 (E,), the class of each object, or -1.
        places: int64 (E,), its index in the `ClassObjects` of that class.
    """
    areas, names = np.zeros(len(labels)), list(split.objects)
    for label in np.unique(labels[labels >= 0]).tolist():
        mine = labels == label
        boxes = split.objects[names[label]].boxes_px[places[mine]]
        areas[mine] = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    return areas


def incident(
    split: EvaluatedSplit, image: int, detection: Place, item: Place, overlap: float = 0.0
) -> Incident:
    """Returns a place with a caption.

    Args:
        split: The split.
        image: The index of the image.
        detection: The detection. A class or an index of -1 means that there is none.
        item: The object. A class or an index of -1 means that there is none.
        overlap: The overlap of the two, for the caption. 0: it is left out.
    """
    names = list(split.objects)
    found = detection if detection[0] >= 0 and detection[1] >= 0 else None
    truth = item if item[0] >= 0 and item[1] >= 0 else None
    if found is None:
        caption = f"{names[item[0]]} is missed"
    else:
        score = float(split.detections[names[found[0]]].scores[found[1]])
        caption = f"{names[found[0]]} {score:.2f}"
        if truth is not None:
            caption += f" on {names[truth[0]]}"
            if overlap:
                caption += f", overlap {overlap:.2f}"
    return Incident(image, caption, found, truth)


def marks(split: EvaluatedSplit, incident: Incident) -> tuple[list[Mark], list[Box]]:
    """Returns the boxes of an image, and those that the incident is about.

    All annotated objects are shown, and the detections from the score threshold on.
    """
    threshold, focus = split.analysis.score_threshold, []
    shown: list[Mark] = []
    for label, (name, of_class) in enumerate(split.objects.items()):
        for index in np.flatnonzero(of_class.images == incident.image).tolist():
            box = as_box(of_class.boxes_px[index])
            chosen = incident.object == (label, index)
            shown.append(Mark(box, "object", name, chosen))
            focus += [box] if chosen else []
    for label, (name, found) in enumerate(split.detections.items()):
        for index in np.flatnonzero(found.images == incident.image).tolist():
            chosen = incident.detection == (label, index)
            if chosen or found.scores[index] >= threshold:
                box, score = as_box(found.boxes_px[index]), float(found.scores[index])
                shown.append(Mark(box, "detection", f"{name} {score:.2f}", chosen))
                focus += [box] if chosen else []
    if incident.extra:
        shown.append(incident.extra)
        focus.append(incident.extra.box_px)
    return shown, focus
