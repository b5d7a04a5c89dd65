import numpy as np
import pytest
from detection_problems import CLASSES, IMAGES, arrays, problems
from hypothesis import given

from multibox.evaluation.found_objects import ASPECTS, SIDES_PX, group_objects
from multibox.evaluation.voc import ClassObjects, judge_classes

SIZES_PX = np.array([[12, 16], [14, 14], [20, 15], [10, 30]])


@given(problems)
def test_every_object_that_is_not_difficult_is_in_one_group(problem) -> None:
    found, truth = problem
    detections, objects = arrays(found, truth)
    verdicts = judge_classes(detections, objects)
    groups = group_objects(verdicts, objects, SIZES_PX, score_threshold=0.5)
    for label in range(CLASSES):
        judged = verdicts[str(label)]
        num_found = int((judged.right & (judged.scores >= 0.5)).sum())
        sums = (num_found, judged.num_objects - num_found)
        for each in (groups.coco_sizes, groups.sizes, groups.aspects):
            assert (each.found[label].sum(), each.missed[label].sum()) == sums
        assert (groups.found_at[label].sum(), groups.missed_at[label].sum()) == sums
    assert len(SIZES_PX) == IMAGES


def missed(objects: ClassObjects, size_px: tuple[int, int] = (100, 200)):
    """The groups of objects that are all missed."""
    verdicts = judge_classes({}, {"cat": objects})
    return group_objects(verdicts, {"cat": objects}, np.array([size_px]))


def one(box: list[float], area_px2: float | None = None) -> ClassObjects:
    areas = None if area_px2 is None else np.array([area_px2])
    return ClassObjects(np.array([0]), np.array([box]), np.array([False]), areas)


@pytest.mark.parametrize(
    ("side", "group"), [(31.5, 0), (32.0, 1), (95.0, 1), (96.0, 2), (1000.0, 2)]
)
def test_a_group_includes_its_lower_limit(side: float, group: int) -> None:
    groups = missed(one([0.0, 0.0, side, side]))
    assert groups.coco_sizes.missed[0].tolist() == [int(n == group) for n in range(3)]
    place = int(groups.sizes.missed[0].argmax())
    assert SIDES_PX[place] <= side < SIDES_PX[place + 1]


def test_annotated_areas_come_first() -> None:
    assert missed(one([0.0, 0.0, 100.0, 100.0], 10.0)).coco_sizes.missed[0].tolist() == [1, 0, 0]


@pytest.mark.parametrize(
    ("width", "height"), [(1.0, 8.0), (1.0, 3.0), (2.0, 3.0), (1.0, 1.0), (3.0, 2.0), (9.0, 1.0)]
)
def test_the_aspect_is_width_by_height(width: float, height: float) -> None:
    place = int(missed(one([5.0, 5.0, 5.0 + width, 5.0 + height])).aspects.missed[0].argmax())
    assert ASPECTS[place] <= width / height < ASPECTS[place + 1]


@pytest.mark.parametrize(
    ("box", "cell"),
    [
        ([0.0, 0.0, 2.0, 2.0], (0, 0)),
        ([180.0, 10.0, 200.0, 12.0], (0, 4)),
        ([90.0, 50.0, 110.0, 52.0], (2, 2)),
        ([200.0, 100.0, 200.0, 100.0], (4, 4)),
        ([250.0, -60.0, 260.0, -50.0], (0, 4)),
    ],
)
def test_the_position_is_the_row_and_column_of_the_centre(box, cell) -> None:
    (found,) = np.argwhere(missed(one(box)).missed_at[0])
    assert tuple(found) == cell


def test_a_low_score_does_not_find() -> None:
    detections, objects = arrays([], [])
    objects["0"] = one([0.0, 0.0, 10.0, 10.0])
    detections["0"] = detections["0"]._replace(
        images=np.array([0]), scores=np.array([0.4]), boxes_px=np.array([[0.0, 0.0, 10.0, 10.0]])
    )
    verdicts = judge_classes(detections, objects)
    for threshold, number in ((0.4, 1), (0.41, 0)):
        groups = group_objects(verdicts, objects, np.array([[20, 20]]), score_threshold=threshold)
        assert groups.coco_sizes.found.sum() == number
