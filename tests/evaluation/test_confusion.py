import numpy as np
import pytest
from detection_problems import CLASSES, arrays, problems
from hypothesis import given
from oracles import confusion as oracle
from oracles.tide import Detection, Object

from multibox.errors import DataError
from multibox.evaluation.confusion import confusion_matrix


@given(problems)
def test_agrees_with_the_loops(problem) -> None:
    for threshold in (0.0, 0.5, 0.95):
        found = confusion_matrix(*arrays(*problem), score_threshold=threshold)
        assert found.classes == ("0", "1", "2")
        assert found.counts.tolist() == oracle.matrix(*problem, CLASSES, threshold)


@given(problems)
def test_every_object_and_every_detection_that_counts_is_counted_once(problem) -> None:
    found, truth = problem
    counts = confusion_matrix(*arrays(found, truth), score_threshold=0.5).counts
    for label in range(CLASSES):
        own = [o for o in truth if o.label == label and not o.difficult]
        assert counts[label].sum() == len(own)
        assert counts[:, label].sum() <= sum(d.label == label and d.score >= 0.5 for d in found)


TEN = (1.0, 1.0, 10.0, 10.0)


@pytest.mark.parametrize(
    ("labels", "scores", "expected"),
    [
        # An object of class 0 detected as both: the higher score decides, the other is of nothing.
        ([0, 1], [0.9, 0.8], {(0, 0): 1, (3, 1): 1}),
        ([0, 1], [0.8, 0.9], {(0, 1): 1, (3, 0): 1}),
        ([1], [0.9], {(0, 1): 1}),
        ([], [], {(0, 3): 1}),
    ],
)
def test_an_object_is_counted_for_the_highest_score(labels, scores, expected) -> None:
    found = [Detection(c, 0, s, TEN) for c, s in zip(labels, scores, strict=True)]
    counts = confusion_matrix(
        *arrays(found, [Object(0, 0, TEN, False)]), score_threshold=0.0
    ).counts
    cells = {(int(a), int(b)): int(counts[a, b]) for a, b in zip(*np.nonzero(counts), strict=True)}
    assert cells == expected


@pytest.mark.parametrize("label", [0, 1])
def test_detections_of_a_difficult_object_do_not_count(label: int) -> None:
    found = [Detection(label, 0, 0.9, TEN)] * 3
    counts = confusion_matrix(*arrays(found, [Object(0, 0, TEN, True)]), score_threshold=0.0).counts
    assert not counts.any()


def test_a_class_without_ground_truth_is_refused() -> None:
    found, truth = arrays([], [])
    with pytest.raises(DataError, match="no ground truth"):
        confusion_matrix({**found, "cow": found["0"]}, truth, score_threshold=0.5)
