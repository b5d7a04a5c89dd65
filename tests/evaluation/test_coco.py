import math

import numpy as np
import pytest
from oracles import coco_ap, voc_ap

from multibox.errors import DataError
from multibox.evaluation.coco import CocoResult, evaluate_coco
from multibox.evaluation.voc import NO_DETECTIONS, ClassDetections, ClassObjects

Detected = dict[str, ClassDetections]
Annotated = dict[str, ClassObjects]
Problem = tuple[Detected, Annotated]

# Sides whose products are 32^2 or 96^2 pixels, and neighbours of these.
BORDERS = np.array([[32, 32], [16, 64], [31, 33], [96, 96], [64, 144], [48, 192], [95, 97]])


def sizes(rng: np.random.Generator, kind: str, count: int) -> np.ndarray:
    if kind == "borders":
        return BORDERS[rng.integers(0, len(BORDERS), count)].astype(np.float64)
    if kind == "tens":
        return rng.integers(1, 7, (count, 2)) * 10.0
    return rng.uniform(2, 200, (count, 2))


def random_problem(seed: int, kind: str, per_object: int = 6) -> Problem:
    """Objects, and detections around them with many equal scores, some of them in other images.

    Args:
        seed: The problem's number.
        kind: `borders` has objects as large as the limits of small and large, `tens` has whole
            tens, so that overlaps are often equal to each other and to a threshold, `any` has
            neither.
        per_object: Detections of every object.
    """
    rng = np.random.default_rng([seed, len(kind)])
    grid = 10 if kind == "tens" else 1
    detections, objects = Detected(), Annotated()
    classes = {"cat": 25, "dog": 12, "rare": 2, "crowds": 5, "undetected": 4, "never": 0}
    for name, count in classes.items():
        low = rng.integers(0, 12, (count, 2)) * 10.0
        boxes = np.concatenate([low, low + sizes(rng, kind, count)], axis=1)
        images = rng.integers(0, 8, count)
        crowd = (rng.random(count) < 0.3) | (name == "crowds")
        objects[name] = ClassObjects(images, boxes, crowd)
        if name == "undetected":
            detections[name] = NO_DETECTIONS
            continue
        near = boxes.repeat(per_object, axis=0)
        near += (rng.normal(0, 6, near.shape) / grid).round() * grid
        near[:, 2:] = np.maximum(near[:, 2:], near[:, :2])
        detections[name] = ClassDetections(
            images=np.append(images.repeat(per_object), [8, 9]),
            scores=rng.integers(1, 40, len(near) + 2) / 40,
            boxes_px=np.concatenate([near, [[0, 0, 9, 9], [5, 5, 50, 70]]]),
        )
    return detections, objects


def assert_pycocotools_agrees(problem: Problem) -> CocoResult:
    detections, objects = problem
    result = evaluate_coco(detections, objects)
    summary, by_class = coco_ap.average_precisions(
        {name: listed(voc_ap.Detection, *found) for name, found in detections.items()},
        {
            name: listed(voc_ap.Object, found.images, found.boxes_px, found.difficult)
            for name, found in objects.items()
        },
        areas={n: o.areas_px2.tolist() for n, o in objects.items() if o.areas_px2 is not None}
        or None,
    )
    assert result.by_class == pytest.approx(by_class, abs=1e-12, rel=0, nan_ok=True)
    ours = {name: getattr(result, name) for name in summary}
    assert ours == pytest.approx(summary, abs=1e-12, rel=0, nan_ok=True)
    return result


def listed(kind: type, *columns: np.ndarray) -> list:
    return [kind(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]


@pytest.mark.parametrize("kind", ["borders", "tens", "any"])
@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_pycocotools(seed, kind):
    result = assert_pycocotools_agrees(random_problem(seed, kind))
    assert 0 < result.mean < 1
    assert result.by_class["undetected"] == 0
    assert math.isnan(result.by_class["crowds"])
    assert math.isnan(result.by_class["never"])


@pytest.mark.parametrize("seed", range(8))
def test_sizes_go_by_the_annotated_areas(seed):
    """Areas of masks are below those of boxes, on the borders of small and large among others."""
    detections, objects = random_problem(seed, "borders")
    plain = evaluate_coco(detections, objects)
    rng = np.random.default_rng(seed)
    for name, found in objects.items():
        sides = found.boxes_px[:, 2:] - found.boxes_px[:, :2]
        shares = rng.choice([0.2, 0.6, 0.9, 1.0], len(sides))
        objects[name] = found._replace(areas_px2=sides.prod(axis=1) * shares)
    result = assert_pycocotools_agrees((detections, objects))
    assert (result.small, result.medium) != (plain.small, plain.medium)


def test_agrees_with_pycocotools_beyond_100_detections_of_an_image():
    problem = random_problem(99, "any", per_object=60)
    assert np.bincount(problem[0]["cat"].images).max() > 100
    assert_pycocotools_agrees(problem)


@pytest.mark.parametrize(
    ("side", "ranges"), [(32.0, ("small", "medium")), (96.0, ("medium", "large"))]
)
def test_an_object_on_a_border_of_areas_is_in_both_ranges(side, ranges):
    box = np.array([[0.0, 0.0, side, side]])
    objects = {"cat": ClassObjects(np.array([0]), box, np.array([False]))}
    detections = {"cat": ClassDetections(np.array([0]), np.ones(1), box)}
    result = assert_pycocotools_agrees((detections, objects))
    measured = {name for name in ("small", "medium", "large") if getattr(result, name) == 1.0}
    assert measured == set(ranges)


def test_prints_and_writes_nothing(capfd, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    evaluate_coco(*random_problem(0, "any"))
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
