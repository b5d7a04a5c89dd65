"""Results in COCO's JSON, beside pycocotools on the same two files."""

import contextlib
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from multibox.commands.evaluate import evaluate_results
from multibox.errors import DataError

NAMES = {3: "cat", 17: "dog", 90: "never"}


def write_annotations(root: Path, split: str = "val") -> Path:
    """Writes 20 images with objects whose ids have gaps, and one in three a crowd."""
    rng = np.random.default_rng(5)
    images = [
        {"id": 100 + 7 * n, "file_name": f"{n:03}.jpg", "width": 500, "height": 400}
        for n in range(20)
    ]
    things: list[dict[str, Any]] = []
    for image in images:
        for _ in range(rng.integers(0, 6)):
            x, y = rng.integers(0, 150), rng.integers(0, 100)
            width, height = rng.integers(8, 250), rng.integers(8, 200)
            box = [int(x), int(y), int(width), int(height)]
            crowd = int(rng.random() < 0.3)
            things.append(
                {
                    "id": len(things) + 1,
                    "image_id": image["id"],
                    "category_id": int(rng.choice([3, 17])),
                    "bbox": box,
                    "area": float(box[2] * box[3] * rng.uniform(0.4, 1)),
                    "iscrowd": crowd,
                }
            )
    categories = [{"id": number, "name": name} for number, name in NAMES.items()]
    content = {"images": images, "annotations": things, "categories": categories}
    path = root / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return path


def detections(annotations: Path) -> list[dict[str, Any]]:
    content = json.loads(annotations.read_text())
    rng = np.random.default_rng(6)
    found = [
        {
            "image_id": thing["image_id"],
            "category_id": thing["category_id"] if rng.random() < 0.8 else 3,
            "bbox": (np.array(thing["bbox"]) + rng.normal(0, 4, 4)).clip(1).round(2).tolist(),
            "score": round(float(rng.random()), 3),
        }
        for thing in content["annotations"]
        for _ in range(3)
    ]
    # A category without objects has no average precision; its detections do not count.
    return [*found, {"image_id": 100, "category_id": 90, "bbox": [1, 2, 30, 40], "score": 1}]


def test_coco_results_have_the_average_precision_of_pycocotools(tmp_path: Path) -> None:
    annotations = write_annotations(tmp_path)
    results = tmp_path / "found.json"
    results.write_text(json.dumps(detections(annotations)))
    metrics, missing = evaluate_results(results, data=tmp_path, split="val")
    assert missing == []
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO(str(annotations))
        evaluation = COCOeval(truth, truth.loadRes(str(results)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    ours = metrics["coco"]
    names = ("AP", "AP50", "AP75", "AP_small", "AP_medium", "AP_large")
    expected = dict(zip(names, evaluation.stats, strict=False))
    assert 0.1 < expected["AP"] < 0.9
    assert {name: ours[name] for name in names} == pytest.approx(expected, abs=1e-12)
    per_class = evaluation.eval["precision"][:, :, :, 0, 2].mean(axis=(0, 1))
    assert ours["AP_by_class"] == pytest.approx(
        {"cat": per_class[0], "dog": per_class[1]}, abs=1e-12
    )


GOOD = {"image_id": 100, "category_id": 3, "bbox": [1, 2, 3, 4], "score": 0.5}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("no JSON", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ({"annotations": []}, "is not a list of detections"),
        ([GOOD, 7], "detection 1: expected image_id"),
        ([GOOD | {"image_id": "100"}], "detection 0: expected image_id"),
        ([GOOD | {"image_id": True}], "detection 0: expected image_id"),
        ([GOOD | {"bbox": [1, 2, 3]}], "detection 0: expected image_id"),
        ([GOOD | {"bbox": [1, 2, 3, math.nan]}], "detection 0: expected image_id"),
        ([GOOD | {"bbox": [1, 2, 3, 10**400]}], "detection 0: expected image_id"),
        ([GOOD | {"score": None}], "detection 0: expected image_id"),
        ([GOOD | {"score": math.inf}], "detection 0: expected image_id"),
        ([GOOD, GOOD | {"image_id": 101}], "detection 1: image id 101 is not in the annotations"),
        ([GOOD | {"category_id": 1}], "detection 0: category id 1 is not in the annotations"),
    ],
)
def test_malformed_coco_results_are_refused(tmp_path: Path, content: object, reason: str) -> None:
    write_annotations(tmp_path)
    results = tmp_path / "found.json"
    results.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(DataError, match=f"found.json.*{reason}") as caught:
        evaluate_results(results, data=tmp_path, split="val")
    assert caught.value.file == results


def test_coco_results_need_one_split_of_a_coco_dataset(tmp_path: Path, shared: Path) -> None:
    results = tmp_path / "found.json"
    results.write_text("[]")
    with pytest.raises(DataError, match="is not in COCO's format, so the image ids"):
        evaluate_results(results, data=shared / "data/bccd/VOCdevkit/BCCD", split="test")
    for split in ("train", "val"):
        path = write_annotations(tmp_path, split)
        path.write_text(path.read_text().replace('.jpg"', f'-{split}.jpg"'))
    with pytest.raises(DataError, match="unique within a file only"):
        evaluate_results(results, data=tmp_path, split="train+val")
