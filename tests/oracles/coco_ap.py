"""pycocotools itself, given detections and objects of several classes one at a time."""

import contextlib
import io
import math
from collections.abc import Mapping, Sequence

import numpy as np
from oracles.voc_ap import Detection, Object
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

SUMMARY = ("mean", "ap50", "ap75", "small", "medium", "large")


def average_precisions(
    detections: Mapping[str, Sequence[Detection]],
    objects: Mapping[str, Sequence[Object]],
    recall_thresholds: Sequence[float] | None = None,
    areas: Mapping[str, Sequence[float]] | None = None,
) -> tuple[dict[str, float], dict[str, float]]:
    """The first six lines of the summary, and AP@[.5:.95] by class; NaN where it says -1.

    Difficult objects are crowds. Areas are those of the boxes where none are given. The recall
    thresholds are the library's where none are given.
    """
    truth, found = [], []
    for category, name in enumerate(objects, start=1):
        for place, item in enumerate(objects[name]):
            common = _annotation(item.image, category, item.box, len(truth) + 1)
            if areas is not None:
                common["area"] = areas[name][place]
            truth.append({**common, "iscrowd": int(item.difficult)})
        for item in detections[name]:
            common = _annotation(item.image, category, item.box, len(found) + 1)
            found.append({**common, "score": item.score})
    images = sorted({annotation["image_id"] for annotation in [*truth, *found]})
    categories = [{"id": c, "name": name} for c, name in enumerate(objects, start=1)]
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth, results = COCO(), COCO()
        for index, annotations in ((ground_truth, truth), (results, found)):
            index.dataset = {
                "images": [{"id": image} for image in images],
                "categories": categories,
                "annotations": annotations,
            }
            index.createIndex()
        evaluation = COCOeval(ground_truth, results, "bbox")
        if recall_thresholds is not None:
            evaluation.params.recThrs = np.array(recall_thresholds, np.float64)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    summary = {
        name: math.nan if value == -1 else float(value)
        for name, value in zip(SUMMARY, evaluation.stats, strict=False)
    }
    by_class = {}
    for place, name in enumerate(objects):
        precision = evaluation.eval["precision"][:, :, place, 0, -1]
        precision = precision[precision > -1]
        by_class[name] = float(precision.mean()) if precision.size else math.nan
    return summary, by_class


def _annotation(image: int, category: int, box: Sequence[float], number: int) -> dict:
    x0, y0, x1, y1 = box
    width, height = x1 - x0, y1 - y0
    return {
        "id": number,
        "image_id": image,
        "category_id": category,
        "bbox": [x0, y0, width, height],
        "area": width * height,
    }
