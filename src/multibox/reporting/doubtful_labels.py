"""Places where a trained network and the annotations disagree."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

import torch

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
    frame = torch.tensor([image.width_px, image.height_px] * 2)
    reported = torch.zeros(0, 4)
    confident = runs[0].scores >= CONFIDENT
    for box, score, label in zip(*(column[confident] for column in runs[0]), strict=True):
        agreed = min([float(score), *(_best(found, box, int(label)) for found in runs[1:])])
        place = as_box((box.clamp(0, 1) * frame).tolist())
        overlaps = pairwise_iou(box[None], objects)[0]
        known = (pairwise_iou(box[None], reported) >= _SAME_OBJECT).any()
        if agreed < CONFIDENT or known:
            continue
        name = classes[int(label)]
        if not len(objects) or overlaps.max() < _SAME_PLACE:
            reported = torch.cat([reported, box[None]])
            yield DoubtfulLabel("missing-label", image, place, None, name, agreed)
            continue
        nearest = int(overlaps.argmax())
        own = int(labels[nearest])
        if overlaps[nearest] < _SAME_OBJECT or own == label:
            continue
        if all(_best(found, objects[nearest], own) < FAINT for found in runs):
            reported = torch.cat([reported, box[None]])
            corners = as_box(image.boxes_px[nearest].tolist())
            yield DoubtfulLabel("other-class", image, corners, classes[own], name, agreed)
    for place_of, (box, label, difficult) in enumerate(
        zip(objects, labels.tolist(), image.difficult.tolist(), strict=True)
    ):
        doubted = len(reported) and (pairwise_iou(box[None], reported) >= _SAME_OBJECT).any()
        if difficult or doubted or any(_best(found, box, label) >= FAINT for found in runs):
            continue
        corners = as_box(image.boxes_px[place_of].tolist())
        yield DoubtfulLabel("not-found", image, corners, classes[label], None, 0.0)


def _best(found: Detections, box: torch.Tensor, label: int) -> float:
    """Returns the best score of a detection of a class at a box, or 0."""
    same = (found.labels == label) & (pairwise_iou(box[None], found.boxes)[0] >= _SAME_OBJECT)
    return float(found.scores[same].max()) if same.any() else 0.0
