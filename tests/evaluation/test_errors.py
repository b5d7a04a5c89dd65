import math
from pathlib import Path

import numpy as np
import pytest
from detection_problems import arrays, problems
from hypothesis import given
from oracles import tide

from multibox.errors import DataError
from multibox.evaluation import error_costs
from multibox.evaluation.errors import KINDS, DetectionErrors, find_errors
from multibox.evaluation.voc import ClassDetections, ClassObjects

# `record_tide.py` says what is in it, and how it was made.
RECORDED = np.load(Path(__file__).with_name("tide.npz"))

PROBLEMS = [*map(str, range(20)), "bccd"]
Problem = tuple[dict[str, ClassDetections], dict[str, ClassObjects]]


def recorded(name: str) -> Problem:
    found, truth = (RECORDED[f"{name}_{key}"].astype(float) for key in ("detections", "objects"))
    detections, objects = {}, {}
    for label in range(int(truth[:, 1].max()) + 1):
        mine, those = found[found[:, 1] == label], truth[truth[:, 1] == label]
        detections[str(label)] = ClassDetections(mine[:, 0].astype(int), mine[:, 2], mine[:, 3:])
        objects[str(label)] = ClassObjects(
            those[:, 0].astype(int), those[:, 2:], np.zeros(len(those), bool)
        )
    return detections, objects


def figures(errors: DetectionErrors) -> np.ndarray:
    costs = [errors.costs[kind] for kind in KINDS]
    counts = [len(errors.rows[kind].images) for kind in KINDS]
    special = [errors.false_positives, errors.false_negatives]
    return np.array([errors.average_precision, *costs, *special, *counts])


@pytest.mark.parametrize("name", PROBLEMS)
def test_both_editions_of_tidecv_compute_the_same(name: str) -> None:
    ours = figures(find_errors(*recorded(name)))
    for edition in ("tidecv", "light"):
        np.testing.assert_allclose(ours, RECORDED[f"{name}_{edition}"], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_hotcoco_computes_the_same_at_its_own_recalls(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its recalls are NumPy's linspace, and it mends without changing the order of equal scores.

    So only what is not mended agrees in the odd problems, which have many equal scores, and in
    BCCD's, which has a few.
    """
    monkeypatch.setattr(error_costs, "_RECALLS", np.linspace(0, 1, 101))
    ours, theirs = figures(find_errors(*recorded(name))), RECORDED[f"{name}_hotcoco"]
    assert ours[9:].tolist() == theirs[9:].tolist()
    ties = name == "bccd" or int(name) % 2
    same = [0, 7] if ties else slice(9)
    np.testing.assert_allclose(ours[same], theirs[same], rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", PROBLEMS)
def test_every_error_is_the_detection_or_object_that_tidecv_names(name: str) -> None:
    detections, objects = recorded(name)
    errors = find_errors(detections, objects)
    starts = np.cumsum([0, *(len(d.images) for d in detections.values())])
    kinds = np.full(starts[-1], -1)
    for code, kind in enumerate(KINDS[:-1]):
        rows = errors.rows[kind]
        kinds[starts[rows.detection_classes] + rows.detections] = code
        own = [detections[str(c)] for c in rows.detection_classes]
        for row, (mine, place) in enumerate(zip(own, rows.detections, strict=True)):
            assert rows.images[row] == mine.images[place]
            assert rows.scores[row] == mine.scores[place]
    assert kinds.tolist() == RECORDED[f"{name}_tidecv_kinds"].tolist()
    starts = np.cumsum([0, *(len(o.images) for o in objects.values())])
    rows, missed = errors.rows["missed"], np.zeros(starts[-1], bool)
    missed[starts[rows.object_classes] + rows.objects] = True
    assert missed.tolist() == RECORDED[f"{name}_tidecv_missed"].tolist()


@given(problems)
def test_agrees_with_the_loops_also_on_difficult_objects(problem) -> None:
    found, truth = problem
    detections, objects = arrays(found, truth)
    errors = find_errors(detections, objects)
    judged = tide.verdicts(found, truth)
    for kind in KINDS[:-1]:
        ours = errors.rows[kind]
        theirs = [d for d, verdict in zip(found, judged, strict=True) if verdict.kind == kind]
        assert sorted(zip(ours.images, ours.detection_classes, ours.scores, strict=True)) == sorted(
            (d.image, d.label, d.score) for d in theirs
        )
    assert len(errors.rows["missed"].images) == len(tide.missed(judged, truth))
    costs = tide.costs(found, truth)
    before = costs["before"]
    assert errors.average_precision == pytest.approx(before, abs=1e-12, nan_ok=True)
    for kind in KINDS:
        cost = max(costs[kind] - before, 0.0) if not math.isnan(before) else math.nan
        assert errors.costs[kind] == pytest.approx(cost, abs=1e-12, nan_ok=True)
    for name in ("false_positives", "false_negatives"):
        expected = pytest.approx(costs[name] - before, abs=1e-12, nan_ok=True)
        assert getattr(errors, name) == expected


# --- single rules, worked by hand

TEN = np.array([[0.0, 0.0, 10.0, 10.0]])


def detection(score: float, box: list[float] | np.ndarray = TEN, image: int = 0) -> ClassDetections:
    return ClassDetections(np.array([image]), np.array([score]), np.reshape(box, (1, 4)) * 1.0)


def item(box: list[float] | np.ndarray = TEN, *, difficult: bool = False) -> ClassObjects:
    return ClassObjects(np.array([0]), np.reshape(box, (1, 4)) * 1.0, np.array([difficult]))


NO_OBJECTS = ClassObjects(np.empty(0, np.int64), np.empty((0, 4)), np.empty(0, bool))


def kinds_of(errors: DetectionErrors) -> dict[str, int]:
    return {kind: len(rows.images) for kind, rows in errors.rows.items() if len(rows.images)}


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([0, 0, 10, 5], {}),
        ([0, 0, 10, 4], {"localization": 1}),
        ([0, 0, 10, 1], {"localization": 1}),
        ([0, 0, 10, 0.5], {"background": 1, "missed": 1}),
    ],
)
def test_the_limits_of_an_error_of_localization_belong_to_it(box: list[float], kind: dict) -> None:
    assert kinds_of(find_errors({"cat": detection(0.9, box)}, {"cat": item()})) == kind


@pytest.mark.parametrize(
    ("box", "kind"),
    [
        ([0, 0, 10, 5], {"classification": 1}),
        ([0, 0, 10, 4], {"both": 1, "missed": 1}),
        ([0, 0, 10, 1], {"background": 1, "missed": 1}),
    ],
)
def test_another_class_needs_half(box: list[float], kind: dict) -> None:
    found = find_errors({"dog": detection(0.9, box)}, {"cat": item(), "dog": NO_OBJECTS})
    assert kinds_of(found) == kind
    # The class of the detection has no objects, so only the other is part of the mean.
    assert found.costs["classification"] == ("classification" in kind)
    rows = next(iter(rows for rows in found.rows.values() if len(rows.images)))
    assert [rows.detection_classes[0], rows.object_classes[0], rows.objects[0]] == [1, 0, 0]


def test_a_detection_of_a_difficult_object_is_neither_right_nor_wrong() -> None:
    errors = find_errors({"cat": detection(0.9)}, {"cat": item(difficult=True)})
    assert kinds_of(errors) == {}
    assert math.isnan(errors.average_precision)


def test_of_another_class_a_difficult_object_is_background() -> None:
    objects = {"cat": item(difficult=True), "dog": item([50, 50, 60, 60])}
    errors = find_errors({"dog": detection(0.9)}, objects)
    assert kinds_of(errors) == {"background": 1, "missed": 1}


def test_only_the_best_detections_of_an_image_count() -> None:
    found = {"cat": detection(0.5), "dog": detection(0.9)}
    objects = {"cat": item(), "dog": NO_OBJECTS}
    assert kinds_of(find_errors(found, objects)) == {"classification": 1}
    assert kinds_of(find_errors(found, objects, max_detections=1)) == {"classification": 1}
    assert find_errors(found, objects).average_precision == 1
    assert find_errors(found, objects, max_detections=1).average_precision == 0


def test_a_class_without_ground_truth_is_refused() -> None:
    with pytest.raises(DataError, match="no ground truth"):
        find_errors({"cow": detection(0.9)}, {"cat": item()})
