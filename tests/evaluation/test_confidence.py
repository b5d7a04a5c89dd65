import math

import numpy as np
import pytest
from detection_problems import arrays, problems
from hypothesis import given
from oracles import voc_ap

from multibox.evaluation.confidence import ThresholdCurve, threshold_curve
from multibox.evaluation.voc import Verdicts, judge_classes


def literal(found, truth, threshold: float) -> tuple[int, int, int]:
    """Right, wrong and missed of all classes if lower scores are left out beforehand."""
    right = wrong = total = 0
    for label in {item.label for item in (*found, *truth)}:
        detections = [
            voc_ap.Detection(d.image, d.score, d.box)
            for d in found
            if d.label == label and d.score >= threshold
        ]
        objects = [voc_ap.Object(o.image, o.box, o.difficult) for o in truth if o.label == label]
        verdicts = [verdict for _, verdict in voc_ap.verdicts(detections, objects)]
        right += verdicts.count("right")
        wrong += verdicts.count("wrong")
        total += sum(not o.difficult for o in objects)
    return right, wrong, total - right


@given(problems)
def test_every_threshold_has_the_counts_of_the_detections_above_it(problem) -> None:
    curve = threshold_curve([*judge_classes(*arrays(*problem)).values()])
    assert (np.diff(curve.thresholds) < 0).all()
    for threshold in (0.0, 0.1, 0.2, 0.25, 0.5, 0.6, 0.75, 0.9, 1.0):
        point = curve.at(threshold)
        assert point.threshold == threshold
        assert (point.right, point.wrong, point.missed) == literal(*problem, threshold)
    scores = {0.1, 0.25, 0.5, 0.75, 0.9}
    every = {score: literal(*problem, score) for score in scores}
    f1 = {s: 2 * r / (2 * r + w + m) if r else 0.0 for s, (r, w, m) in every.items()}
    best = curve.best()
    if not any(f1.values()):
        assert best is None
        return
    assert best is not None
    # Leaving out more without changing anything would be as good, so only a score of a detection.
    known = [s for s in curve.thresholds.tolist() if f1[s] == max(f1.values())]
    assert best.threshold == max(known)
    assert (best.right, best.wrong, best.missed) == every[best.threshold]
    assert best.f1 == max(f1.values()) == curve.f1.max()
    harmonic = 2 * best.precision * best.recall / (best.precision + best.recall)
    assert best.f1 == pytest.approx(harmonic, abs=1e-12)
    place = curve.thresholds.tolist().index(best.threshold)
    assert (curve.precision[place], curve.recall[place]) == (best.precision, best.recall)


def verdicts(scores: list[float], right: list[bool], num_objects: int) -> Verdicts:
    count = len(scores)
    order, counts = np.arange(count), np.ones(count, bool)
    return Verdicts(
        order, order, np.array(scores), order, np.array(right, bool), counts, num_objects
    )


def test_of_equal_f1_the_highest_threshold_wins() -> None:
    # 2 / (1 + 2) and 4 / (4 + 2).
    curve = threshold_curve([verdicts([0.9, 0.8, 0.7, 0.6], [True, False, False, True], 2)])
    assert curve.f1.tolist() == [2 / 3, 0.5, 0.4, 2 / 3]
    best = curve.best()
    assert best is not None
    assert (best.threshold, best.right, best.wrong, best.missed) == (0.9, 1, 0, 1)


def test_equal_scores_stay_together() -> None:
    curve = threshold_curve([verdicts([0.9, 0.9], [True, False], 1)])
    assert curve.thresholds.tolist() == [0.9]
    assert (curve.right.tolist(), curve.wrong.tolist()) == ([1], [1])


def test_classes_together_count_by_their_detections() -> None:
    often, rare = verdicts([0.5] * 9, [True] * 9, 9), verdicts([0.9, 0.4], [False, True], 1)
    best = threshold_curve([often, rare]).best()
    assert best is not None
    assert (best.threshold, best.right, best.wrong, best.missed) == (0.4, 10, 1, 0)


def test_without_detections_or_objects_there_is_no_best_threshold() -> None:
    nothing: ThresholdCurve = threshold_curve([verdicts([], [], 0)])
    assert nothing.best() is None
    point = nothing.at(0.5)
    assert all(math.isnan(value) for value in (point.precision, point.recall, point.f1))
    only_wrong = threshold_curve([verdicts([0.5], [False], 0)])
    assert only_wrong.best() is None
    assert np.isnan(only_wrong.recall).all()
