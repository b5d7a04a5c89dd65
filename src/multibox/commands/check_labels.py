"""The verb `check` on a run: annotations that the trained network disagrees with.

Several runs on the same data with other seeds can be combined. Then only what all of them agree on
is reported.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import cv2
import jinja2
import numpy as np
import torch
from jaxtyping import UInt8

from multibox.boxes import pairwise_iou
from multibox.commands.evaluate import Evaluated, detect_split
from multibox.data.dataset import Annotation
from multibox.data.images import read_image
from multibox.drawing import draw_truth, write_picture
from multibox.errors import ConfigError
from multibox.storage.run_folder import read_config, read_split, write_json, write_text
from multibox.structures import Detections

FOLDER = "labels"
"""The folder of the pictures, in the run's folder."""

Doubt = Literal["missing-label", "other-class", "not-found"]

CONFIDENT = 0.5
"""Minimum score of a detection that contradicts the annotation."""

_FAINT = 0.1
_SAME_OBJECT, _SAME_PLACE = 0.5, 0.3
_PICTURES = 60
_SHOWN_SIDE_PX = 480
_MARGIN = 1.0


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
    box_px: tuple[float, float, float, float]
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


def is_run(folder: Path) -> bool:
    """Whether a folder is a run's, not a dataset's."""
    return (folder / "config.json").is_file() and (folder / "run.json").is_file()


def check_labels(runs: Sequence[Path], *, device: str = "auto") -> list[DoubtfulLabel]:
    """Compares the training images' annotations with what trained networks detect in them.

    It writes pictures and a page of them to the folder `labels` of the first run.

    Args:
        runs: The folders of runs on the same data.
        device: `auto`, `cpu` or `cuda`.

    Raises:
        ConfigError: A folder is not a run, or the runs have other images.
        MultiboxError: The weights or the data cannot be used.
    """
    evaluated = [_detect(run, device) for run in runs]
    first = evaluated[0].dataset
    for run, other in zip(runs, evaluated, strict=True):
        if other.dataset.digest != first.digest:
            raise ConfigError(
                f"was trained on other images or classes than {runs[0]}",
                file=run,
                remedy="Use runs with the same data and the same --split and --seed of the split",
            )
    found = [
        doubt
        for place, image in enumerate(first.annotations)
        for doubt in compare(image, [each.detections[place] for each in evaluated], first.classes)
    ]
    found.sort(key=_urgency)
    _write_pictures(runs[0], found)
    return found


def _detect(run: Path, device: str) -> Evaluated:
    split = "train" if read_split(run) else read_config(run).data.train_split
    return detect_split(
        run, which="last", data=None, split=split, on_bad=None, device=device, workers=-1
    )


def _urgency(doubt: DoubtfulLabel) -> tuple[str, float]:
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
    for box, score, label in zip(*runs[0], strict=True):
        agreed = min([float(score), *(_best(found, box, int(label)) for found in runs[1:])])
        place = (box.clamp(0, 1) * frame).tolist()
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
        if all(_best(found, objects[nearest], own) < _FAINT for found in runs):
            reported = torch.cat([reported, box[None]])
            corners = image.boxes_px[nearest].tolist()
            yield DoubtfulLabel("other-class", image, corners, classes[own], name, agreed)
    for place_of, (box, label, difficult) in enumerate(
        zip(objects, labels.tolist(), image.difficult.tolist(), strict=True)
    ):
        doubted = len(reported) and (pairwise_iou(box[None], reported) >= _SAME_OBJECT).any()
        if difficult or doubted or any(_best(found, box, label) >= _FAINT for found in runs):
            continue
        corners = image.boxes_px[place_of].tolist()
        yield DoubtfulLabel("not-found", image, corners, classes[label], None, 0.0)


def _best(found: Detections, box: torch.Tensor, label: int) -> float:
    """Returns the best score of a detection of a class at a box, or 0."""
    same = (found.labels == label) & (pairwise_iou(box[None], found.boxes)[0] >= _SAME_OBJECT)
    return float(found.scores[same].max()) if same.any() else 0.0


def _write_pictures(run: Path, found: Sequence[DoubtfulLabel]) -> None:
    folder = run / FOLDER
    shown: dict[str, list[dict[str, str]]] = {}
    for doubt in found:
        of_kind = shown.setdefault(doubt.kind, [])
        if len(of_kind) < _PICTURES:
            file = f"{doubt.kind}-{len(of_kind):03}.jpg"
            folder.mkdir(exist_ok=True)
            write_picture(folder / file, _picture(doubt))
            of_kind.append(
                {"file": file, "text": doubt.describe(), "image": doubt.image.image_path.name}
            )
    write_json(folder / "labels.json", [doubt.as_json() for doubt in found])
    counts = {kind: sum(doubt.kind == kind for doubt in found) for kind in shown}
    page = jinja2.Environment(
        loader=jinja2.PackageLoader("multibox"), autoescape=True, undefined=jinja2.StrictUndefined
    ).get_template("labels.html.j2")
    write_text(folder / "index.html", page.render(shown=shown, counts=counts, run=run.name))


def _picture(doubt: DoubtfulLabel) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the part of the image around the box. The box is thick, annotated ones are thin."""
    pixels = read_image(doubt.image.image_path)
    draw_truth(pixels, doubt.image.boxes_px, doubt.image.labels)
    x0, y0, x1, y1 = doubt.box_px
    line = max(2, round(max(x1 - x0, y1 - y0) / 60))
    corners = [round(side) for side in doubt.box_px]
    cv2.rectangle(pixels, corners[:2], corners[2:], (255, 255, 255), line + 2, cv2.LINE_AA)
    cv2.rectangle(pixels, corners[:2], corners[2:], (230, 30, 30), line, cv2.LINE_AA)
    margin = _MARGIN * max(x1 - x0, y1 - y0)
    left, top = max(0, round(x0 - margin)), max(0, round(y0 - margin))
    part = pixels[top : round(y1 + margin), left : round(x1 + margin)]
    scale = _SHOWN_SIDE_PX / max(part.shape[:2])
    size = max(1, round(part.shape[1] * scale)), max(1, round(part.shape[0] * scale))
    shrinks = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(part, size, interpolation=shrinks))
