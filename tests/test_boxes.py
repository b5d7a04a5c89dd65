import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracles import matching as oracle

from multibox.boxes import area, pairwise_iou, to_cxcywh, to_xyxy

# Multiples of 1/8, so that edges coincide and float32 is exact.
steps = st.integers(-4, 12).map(lambda n: n / 8)
grid_boxes = st.tuples(steps, steps, steps, steps).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
tables = st.lists(grid_boxes, min_size=1, max_size=6)


def table(items: list[tuple[float, ...]]) -> torch.Tensor:
    return torch.tensor(items, dtype=torch.float32).reshape(-1, 4)


def test_area() -> None:
    boxes = table([(0, 0, 2, 3), (0.5, 0.5, 0.5, 2), (1, 1, 0, 2), (1, 1, 0, 0), (-1, -1, 1, 1)])
    assert area(boxes).tolist() == [6, 0, 0, 0, 4]
    assert area(boxes.reshape(1, 5, 4)).shape == (1, 5)


@settings(deadline=None)
@given(tables, tables)
def test_iou_is_the_oracle_s_and_symmetric(
    a: list[tuple[float, ...]], b: list[tuple[float, ...]]
) -> None:
    found = pairwise_iou(table(a), table(b))
    expected = [[oracle.overlap(x, y) for y in b] for x in a]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-6, atol=0)
    assert torch.equal(found, pairwise_iou(table(b), table(a)).T)
    assert bool(((found >= 0) & (found <= 1)).all())


@settings(deadline=None)
@given(tables)
def test_iou_with_itself_is_one_but_for_empty_boxes(items: list[tuple[float, ...]]) -> None:
    boxes = table(items)
    assert torch.equal(pairwise_iou(boxes, boxes).diagonal(), (area(boxes) > 0).float())


def test_iou_of_a_batch_is_that_of_its_images() -> None:
    images = table([(0, 0, 1, 1), (0.25, 0, 0.5, 1), (0, 0, 0, 0), (0.5, 0.5, 2, 2)])
    images = images.reshape(2, 2, 4)
    others = table([(0, 0, 0.5, 1), (0.75, 0.75, 1, 1), (3, 3, 4, 4)])
    found = pairwise_iou(images, others)
    assert found.shape == (2, 2, 3)
    for image, expected in zip(images, found, strict=True):
        assert torch.equal(pairwise_iou(image, others), expected)
    both = pairwise_iou(images, images)
    assert torch.equal(both[1], pairwise_iou(images[1], images[1]))


def test_iou_leaves_its_arguments_alone_and_takes_none() -> None:
    a, b = table([(0, 0, 1, 1)]), table([(0.5, 0, 1.5, 1)])
    assert pairwise_iou(a, b).item() == pytest.approx(1 / 3)
    assert a.tolist() == [[0, 0, 1, 1]]
    assert b.tolist() == [[0.5, 0, 1.5, 1]]
    assert pairwise_iou(table([]), b).shape == (0, 1)
    assert pairwise_iou(a, table([])).shape == (1, 0)


def test_forms_by_hand() -> None:
    assert to_cxcywh(table([(0.25, 0.5, 0.75, 2)])).tolist() == [[0.5, 1.25, 0.5, 1.5]]
    assert to_xyxy(table([(0.5, 1.25, 0.5, 1.5)])).tolist() == [[0.25, 0.5, 0.75, 2]]


@settings(deadline=None)
@given(tables)
def test_forms_undo_each_other(items: list[tuple[float, ...]]) -> None:
    boxes = table(items)
    assert torch.equal(to_xyxy(to_cxcywh(boxes)), boxes)
    assert torch.equal(to_cxcywh(boxes.reshape(1, -1, 4))[0], to_cxcywh(boxes))
