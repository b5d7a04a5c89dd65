"""Places where a trained network and the annotations disagree."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from multibox.boxes import pairwise_iou
from multibox.data.dataset import Annotation
from multibox.reporting.pictures import Box, as_box
from multibox.structures import Detections

Doubt = Literal["missing-label", "other-class", "not-found"]

CONFIDENT = 0.5
"""Minimum score of a detection that contradicts the annotation."""

FAINT = 0.1
"""An object is not found if no detection at its place has this score."""

_SAME_OBJECT, _SAME_PLACE = 0.5, 0.3


class DoubtfulLabel(NamedTuple):
    """A place where network and annotation disagree.

    Attributes:
        kind: `missing-label`: a confident detection of something that nobody annotated.
            `other-class`: an object that is confidently detected as another class. `not-found`: an
            object that no run detects, not even with a low score.
        image: The annotation of the image.
        box_px: The box: of the detection for a missing label, otherwise of the object.
        annotated: The object's class, or None.
        detected: The detected class, or None.
        score: The lowest score of the detection among the runs, 0..1; 0 if there is none.
    """

    kind: Doubt
    image: Annotation
    box_px: Box
    annotated: str | None
    detected: str | None
    score: float

    def describe(self) -> str:
        """Returns a sentence on the disagreement, without a full stop."""
        match self.kind:
            case "missing-label":
                return f"{self.detected!r} ({self.score:.2f}) is not annotated"
            case "other-class":
                return f"{self.annotated!r} looks like {self.detected!r} ({self.score:.2f})"
        return f"{self.annotated!r} is not found"

    def as_json(self) -> dict[str, Any]:
        """Returns the disagreement as a JSON object."""
        return {
            "kind": self.kind,
            "image": str(self.image.image_path),
            "box_px": [round(side, 1) for side in self.box_px],
            "annotated": self.annotated,
            "detected": self.detected,
            "score": round(self.score, 4),
        }


def urgency(doubt: DoubtfulLabel) -> tuple[str, float]:
    """Returns the key that sorts by kind, and the most obvious of each kind first."""
    x0, y0, x1, y1 = doubt.box_px
    size = (x1 - x0) * (y1 - y0) / (doubt.image.width_px * doubt.image.height_px)
    return doubt.kind, -(size if doubt.kind == "not-found" else doubt.score)


def compare(
    image: Annotation, runs: Sequence[Detections], classes: tuple[str, ...]
) -> Iterator[DoubtfulLabel]:
    """Yields the disagreements in an image.

    Args:
        image: The annotation.
        runs: The detections of each run.
        classes: The class names.
    """
    objects = torch.from_numpy(image.boxes)
    labels = torch.from_numpy(image.labels)
    overlaps = [pairwise_iou(found.boxes, objects) for found in runs]
    best = [_best(found, labels, iou) for found, iou in zip(runs, overlaps, strict=True)]
    unfound = (torch.stack(best) < FAINT).all(dim=0)
    reported = torch.zeros(0, 4)
    sure = runs[0].scores >= CONFIDENT
    for box, score, label, overlap, nearest in _contradictions(
        Detections(*(column[sure] for column in runs[0])), labels, overlaps[0][sure]
    ):
        others = [
            float(_best(found, label[None], pairwise_iou(found.boxes, box[None])))
            for found in runs[1:]
        ]
        agreed = min([float(score), *others])
        known = (pairwise_iou(box[None], reported) >= _SAME_OBJECT).any()
        if agreed < CONFIDENT or known:
            continue
        name = classes[int(label)]
        if overlap < _SAME_PLACE:
            frame = torch.tensor([image.width_px, image.height_px] * 2)
            place = as_box((box.clamp(0, 1) * frame).tolist())
            reported = torch.cat([reported, box[None]])
            yield DoubtfulLabel("missing-label", image, place, None, name, agreed)
        elif unfound[nearest]:
            reported = torch.cat([reported, box[None]])
            corners = as_box(image.boxes_px[nearest].tolist())
            own = classes[int(labels[nearest])]
            yield DoubtfulLabel("other-class", image, corners, own, name, agreed)
    missed = np.flatnonzero(unfound.numpy() & ~image.difficult)
    # Most images have none, and the overlaps of a few boxes take as long as those of many.
    if len(missed):
        doubted = (pairwise_iou(objects, reported) >= _SAME_OBJECT).any(dim=1)
        missed = missed[~doubted.numpy()[missed]]
    for place_of in missed.tolist():
        corners = as_box(image.boxes_px[place_of].tolist())
        name = classes[int(labels[place_of])]
        yield DoubtfulLabel("not-found", image, corners, name, None, 0.0)


def _contradictions(
    found: Detections, labels: Int64[Tensor, " M"], overlaps: Float[Tensor, "N M"]
) -> Iterator[tuple[Tensor, Tensor, Tensor, float, int]]:
    """Yields detections of nothing, and those of an object of another class.

    Each comes with its box, score and label, and with the overlap and index of the nearest object.
    """
    largest, nearest = torch.zeros(2, len(found.scores))
    chosen = torch.ones(len(found.scores), dtype=torch.bool)
    if len(labels):
        largest, nearest = overlaps.max(dim=1)
        chosen = (largest < _SAME_PLACE) | (
            (largest >= _SAME_OBJECT) & (labels[nearest] != found.labels)
        )
    rows = [*found, largest, nearest]
    for box, score, label, overlap, place in zip(*(row[chosen] for row in rows), strict=True):
        yield box, score, label, float(overlap), int(place)


def _best(
    found: Detections, labels: Int64[Tensor, " M"], overlaps: Float[Tensor, "N M"]
) -> Float[Tensor, " M"]:
    """Returns the best score of a detection of each class at each box, or 0."""
    if not len(found.scores):
        return torch.zeros(len(labels))
    same = (found.labels[:, None] == labels) & (overlaps >= _SAME_OBJECT)
    return (found.scores[:, None] * same).max(dim=0).values
