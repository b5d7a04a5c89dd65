"""The comparison of detections."""

import pytest
import torch

from multibox.export.agreement import compare
from multibox.structures import Detections


@pytest.mark.parametrize(("min_iou", "expected"), [(0.98, (0.0, 2, 2)), (0.5, (2.0, 3, 0))])
def test_another_box_of_the_same_score_is_alone(
    min_iou: float, expected: tuple[float, int, int]
) -> None:
    def found(left: float, score: float) -> Detections:
        boxes = [[0.6, 0.6, 0.9, 0.9], [left, 0.1, left + 0.3, 0.4], [0.5, 0.1, 0.7, 0.3]]
        scores, labels = torch.tensor([0.8, score, 0.1]), torch.zeros(3, dtype=torch.int64)
        return Detections(torch.tensor(boxes), scores, labels)

    one, other = found(0.10, 0.500001), found(0.12, 0.5)
    difference = compare(one, other, (100, 100), margin=1e-3, min_iou=min_iou)
    assert (difference.compared, difference.alone) == expected[1:]
    assert difference.box_px == pytest.approx(expected[0], abs=1e-4)
    assert difference.score <= 2e-6
