import contextlib
import io
import math

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from multibox.errors import DataError
from multibox.evaluation.coco import CocoResult, evaluate_coco
from multibox.evaluation.voc import NO_DETECTIONS, ClassDetections, ClassObjects

Detected = dict[str, ClassDetections]
Annotated = dict[str, ClassObjects]


def random_problem(seed: int, per_image: int = 6) -> tuple[Detected, Annotated]:
    """Objects of all sizes, and detections around them with many equal scores."""
    rng = np.random.default_rng(seed)
    detections, objects = Detected(), Annotated()
    for name, count in (("cat", 25), ("dog", 12), ("rare", 2), ("never", 0)):
        low = rng.integers(0, 200, (count, 2)).astype(np.float64)
        boxes = np.concatenate([low, low + rng.integers(4, 200, (count, 2))], axis=1)
        images = rng.integers(0, 8, count)
        objects[name] = ClassObjects(images, boxes, rng.random(count) < 0.3)
        near = boxes.repeat(per_image, axis=0)
        near += rng.normal(0, 6, near.shape).round()
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
        detections[name] = ClassDetections(
            images=np.append(images.repeat(per_image), [8, 9]),
            scores=rng.integers(1, 40, len(near) + 2) / 40,
            boxes_px=np.concatenate([near, [[0, 0, 9, 9], [5, 5, 50, 70]]]),
        )
    return detections, objects


def pycocotools(detections: Detected, objects: Annotated) -> CocoResult:
    """The reference implementation, given the same problem box by box."""
    truth, found, images = [], [], set()
    for category, name in enumerate(objects, start=1):
        for image, (x0, y0, x1, y1), difficult in zip(*objects[name], strict=True):
            truth.append(
                {
                    "id": len(truth) + 1,
                    "image_id": int(image),
                    "category_id": category,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": int(difficult),
                }
            )
            images.add(int(image))
        for image, score, (x0, y0, x1, y1) in zip(*detections[name], strict=True):
            found.append(
                {
                    "image_id": int(image),
                    "category_id": category,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "score": score,
                }
            )
            images.add(int(image))
    with contextlib.redirect_stdout(io.StringIO()):
        ground_truth = COCO()
        ground_truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in sorted(images)],
            "categories": [{"id": c, "name": n} for c, n in enumerate(objects, start=1)],
            "annotations": truth,
        }
        ground_truth.createIndex()
        evaluation = COCOeval(ground_truth, ground_truth.loadRes(found), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    by_class = {}
    for place, name in enumerate(objects):
        precision = evaluation.eval["precision"][:, :, place, 0, -1]
        precision = precision[precision > -1]
        by_class[name] = float(precision.mean()) if precision.size else math.nan
    mean, ap50, ap75, small, medium, large = (
        math.nan if value == -1 else float(value) for value in evaluation.stats[:6]
    )
    return CocoResult(
        mean=mean,
        ap50=ap50,
        ap75=ap75,
        small=small,
        medium=medium,
        large=large,
        by_class=by_class,
    )


def assert_equal(result: CocoResult, reference: CocoResult) -> None:
    assert result.by_class == pytest.approx(reference.by_class, abs=1e-12, rel=0, nan_ok=True)
    for name in ("mean", "ap50", "ap75", "small", "medium", "large"):
        value = getattr(reference, name)
        assert getattr(result, name) == pytest.approx(value, abs=1e-12, rel=0, nan_ok=True), name


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_pycocotools(seed):
    detections, objects = random_problem(seed)
    result = evaluate_coco(detections, objects)
    assert 0 < result.mean < 1
    assert math.isnan(result.by_class["never"])
    assert_equal(result, pycocotools(detections, objects))


def test_agrees_with_pycocotools_beyond_100_detections_of_an_image():
    detections, objects = random_problem(99, per_image=60)
    assert np.bincount(detections["cat"].images).max() > 100
    assert_equal(evaluate_coco(detections, objects), pycocotools(detections, objects))


def test_prints_and_writes_nothing(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate_coco(*random_problem(0))
    assert capfd.readouterr() == ("", "")
    assert not list(tmp_path.iterdir())


def one_object(*, difficult: bool) -> ClassObjects:
    return ClassObjects(np.array([3]), np.array([[10.0, 10.0, 40.0, 30.0]]), np.array([difficult]))


def test_the_annotated_boxes_themselves_are_perfect():
    objects = {"cat": one_object(difficult=False)}
    detections = {"cat": ClassDetections(np.array([3]), np.ones(1), objects["cat"].boxes_px)}
    result = evaluate_coco(detections, objects)
    # 30 x 20 pixels are small: no +1, and nothing medium or large to be measured.
    assert (result.mean, result.ap50, result.ap75, result.small) == (1.0, 1.0, 1.0, 1.0)
    assert math.isnan(result.medium)
    assert math.isnan(result.large)


def test_a_detection_half_inside_a_difficult_object_does_not_count():
    # The first lies in the difficult object entirely, with an overlap of a fortieth.
    objects = {
        "cat": ClassObjects(
            images=np.array([0, 0]),
            boxes_px=np.array([[0.0, 0.0, 100.0, 100.0], [200.0, 200.0, 220.0, 220.0]]),
            difficult=np.array([True, False]),
        )
    }
    inside, hit = [10.0, 10.0, 20.0, 35.0], [200.0, 200.0, 220.0, 220.0]
    detections = ClassDetections(
        np.zeros(2, np.int64), np.array([0.9, 0.8]), np.array([inside, hit])
    )
    assert evaluate_coco({"cat": detections}, objects).ap50 == 1.0


def test_without_detections_the_average_is_zero():
    result = evaluate_coco({}, {"cat": one_object(difficult=False)})
    assert (result.mean, result.by_class) == (0.0, {"cat": 0.0})


def test_without_objects_there_is_no_average():
    for objects in ({"cat": one_object(difficult=True)}, {"cat": ClassObjects(*EMPTY)}, {}):
        result = evaluate_coco({}, objects)
        assert math.isnan(result.mean)
        assert all(math.isnan(value) for value in result.by_class.values())


EMPTY = (np.empty(0, np.int64), np.empty((0, 4)), np.empty(0, bool))


def test_detections_of_an_unknown_class_are_refused():
    with pytest.raises(DataError, match="detections of ocelot"):
        evaluate_coco({"ocelot": NO_DETECTIONS}, {"cat": one_object(difficult=False)})
