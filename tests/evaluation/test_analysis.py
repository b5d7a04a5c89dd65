import numpy as np
from detection_problems import arrays
from oracles.tide import Detection, Object

from multibox.evaluation.analysis import analyse

TEN = (1.0, 1.0, 10.0, 10.0)
SIZES_PX = np.array([[20, 30], [20, 30]])
FOUND = [Detection(0, 0, 0.8, TEN), Detection(0, 1, 0.7, TEN), Detection(1, 1, 0.2, TEN)]
TRUTH = [Object(0, 0, TEN, False), Object(0, 1, TEN, False)]


def test_the_threshold_is_the_best_of_all_classes() -> None:
    result = analyse(*arrays(FOUND, TRUTH), SIZES_PX)
    assert result.score_threshold == 0.7
    assert result.confusion.counts.tolist() == [[2, 0, 0, 0], *[[0] * 4] * 3]
    assert result.found_objects.coco_sizes.found.tolist() == [[2, 0, 0], [0, 0, 0], [0, 0, 0]]
    assert result.thresholds["0"].at(0.75).missed == 1
    assert len(result.errors.rows["classification"].images) == 1
    assert (result.spread.means["voc12"] == 1).all()


def test_another_threshold_can_be_chosen() -> None:
    result = analyse(*arrays(FOUND, TRUTH), SIZES_PX, score_threshold=0.1)
    assert result.score_threshold == 0.1
    assert result.confusion.counts[3].tolist() == [0, 1, 0, 0]


def test_nothing_at_all_is_analysed_too() -> None:
    result = analyse(*arrays([], []), SIZES_PX)
    assert result.score_threshold == 0
    assert not result.confusion.counts.any()
