from pathlib import Path
from typing import NamedTuple
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy
from oracles import matching as oracle

from multibox.boxes import pairwise_iou, to_xyxy
from multibox.ssd import matching
from multibox.ssd.coding import Variances, encode
from multibox.ssd.default_boxes import SSD300_VOC, Level, default_boxes
from multibox.ssd.matching import match, match_boxes
from multibox.structures import Matches, Targets

Object = tuple[tuple[float, float, float, float], int]

# 68 boxes, whose edges and the objects' below often coincide.
TABLE = default_boxes(
    (
        Level((4, 4), (25, 25), 25, 50, (1, 2, 1 / 2)),
        Level((1, 1), (100, 100), 50, 100, (1, 2, 1 / 2)),
    ),
    (100, 100),
)


def targets(images: list[list[Object]]) -> Targets:
    """The images' objects, padded to the fullest."""
    shape = (len(images), max(map(len, images)))
    padded = Targets(
        boxes=torch.zeros(*shape, 4),
        labels=torch.zeros(shape, dtype=torch.int64),
        difficult=torch.zeros(shape, dtype=torch.bool),
        valid=torch.zeros(shape, dtype=torch.bool),
    )
    for image, objects in enumerate(images):
        for number, (box, label) in enumerate(objects):
            padded.boxes[image, number] = torch.tensor(box)
            padded.labels[image, number] = label
            padded.valid[image, number] = True
    return padded


def by_box(matches: Matches, num_boxes: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What every default box is to predict: classes (B, K), offsets (B, K, 4)."""
    batch = len(matches.classes)
    classes = torch.zeros(batch, num_boxes, dtype=torch.int64)
    offsets = torch.zeros(batch, num_boxes, 4)
    for image, found in enumerate(matches.classes > 0):
        places = matches.boxes[image, found]
        assert torch.all(places.diff() > 0)
        classes[image, places] = matches.classes[image, found]
        offsets[image, places] = matches.offsets[image, found]
        for field in matches:
            assert not field[image, ~found].any()
    return classes, offsets


def objects_by_box(
    table: torch.Tensor, boxes: torch.Tensor, valid: torch.Tensor
) -> list[list[int]]:
    """The object of every default box, -1 for none."""
    image, column = valid.nonzero(as_tuple=True)
    places, items = match_boxes(table, boxes[image, column], image)
    found = torch.full((len(valid), len(table)), -1)
    found[image[items], places] = column[items]
    return found.tolist()


def by_oracle(overlaps: torch.Tensor) -> list[int]:
    return oracle.match(overlaps.tolist(), overlaps.shape[1])


# --- the original encoder of ssd_keras, all its images as one batch


class Golden(NamedTuple):
    """Image by image: objects as (class, box in pixels), and what was matched to them."""

    default_boxes: torch.Tensor
    objects: list[np.ndarray]
    positions: list[np.ndarray]
    classes: list[np.ndarray]
    offsets: list[np.ndarray]


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    stored = np.load(shared / "parity/ssd_keras_matching.npz")
    fields = ([stored[f"{name}_{image}"] for image in range(25)] for name in ("pos", "cls", "off"))
    table = to_xyxy(torch.from_numpy(stored["default_boxes_cxcywh"]))
    return Golden(table, [stored[f"gt_{image}"] for image in range(25)], *fields)


@pytest.fixture(scope="module")
def ssd300() -> torch.Tensor:
    return default_boxes(SSD300_VOC, (300, 300))


@pytest.fixture(scope="module")
def golden_targets(golden: Golden) -> Targets:
    return targets(
        [[(tuple(row[1:] / 300), int(row[0]) - 1) for row in rows] for rows in golden.objects]
    )


@pytest.fixture(scope="module")
def golden_matches(
    ssd300: torch.Tensor, golden_targets: Targets
) -> tuple[torch.Tensor, torch.Tensor]:
    return by_box(match(ssd300, golden_targets), len(ssd300))


@pytest.mark.parametrize("image", range(25))
def test_ssd_keras_matches_the_same(
    golden: Golden, golden_matches: tuple[torch.Tensor, torch.Tensor], image: int
) -> None:
    """Equal but for the box that an object gets by force where several overlap it equally.

    Which of those is ahead is decided by rounding, in ssd_keras as in Caffe.
    """
    classes, offsets = (field[image].numpy() for field in golden_matches)
    ours, theirs = classes.nonzero()[0], golden.positions[image]
    common, _, among_theirs = np.intersect1d(ours, theirs, return_indices=True)
    assert np.array_equal(classes[common], golden.classes[image][among_theirs])
    expected = golden.offsets[image][among_theirs]
    np.testing.assert_allclose(offsets[common], expected, rtol=1e-4, atol=1e-5)

    boxes = torch.from_numpy(golden.objects[image][:, 1:] / 300)
    overlaps = pairwise_iou(boxes, golden.default_boxes).numpy()
    only_ours, only_theirs = np.setdiff1d(ours, theirs), ~np.isin(theirs, ours)
    objects = objects_of(offsets[only_ours], boxes, golden.default_boxes[only_ours])
    swapped = {item: overlaps[item, box] for item, box in zip(objects, only_ours, strict=True)}
    assert len(swapped) == len(only_ours) == only_theirs.sum()
    boxes_of_theirs = theirs[only_theirs]
    objects = objects_of(
        golden.offsets[image][only_theirs], boxes, golden.default_boxes[boxes_of_theirs]
    )
    for item, box in zip(objects, boxes_of_theirs, strict=True):
        assert overlaps[item, box] == pytest.approx(swapped[item], rel=1e-12)


def objects_of(offsets: np.ndarray, boxes: torch.Tensor, matched: torch.Tensor) -> list[int]:
    """Which object the offsets of each default box point to."""
    repeated = boxes[:, None].expand(-1, len(matched), 4)
    distances = np.abs(encode(repeated, matched).numpy() - offsets).max(axis=2)
    return distances.argmin(axis=0).tolist()


def test_oracle_matches_the_same_at_full_size(
    ssd300: torch.Tensor, golden_targets: Targets
) -> None:
    boxes, valid = golden_targets.boxes, golden_targets.valid
    found = objects_by_box(ssd300, boxes, valid)
    for image in range(0, 25, 6):
        expected = by_oracle(pairwise_iou(boxes[image, valid[image]], ssd300))
        assert found[image] == expected


# --- the rules, on tables of overlaps


def match_table(overlaps: torch.Tensor, pairs_at_a_time: int = 2**20) -> list[list[int]]:
    """What is matched where the overlaps of B images, M objects and K boxes are given."""
    batch, num_objects, num_boxes = overlaps.shape
    addresses = torch.zeros(batch, num_objects, 4)
    addresses[..., 0] = torch.arange(batch).unsqueeze(1)
    addresses[..., 1] = torch.arange(num_objects)

    def look_up(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return overlaps[a[..., 0].long(), a[..., 1].long()]

    valid = torch.ones(batch, num_objects, dtype=torch.bool)
    with (
        mock.patch.object(matching.bx, "pairwise_iou", look_up),
        mock.patch.object(matching, "_PAIRS_AT_A_TIME", pairs_at_a_time),
    ):
        return objects_by_box(torch.zeros(num_boxes, 4), addresses, valid)


def matched(overlaps: list[list[float]]) -> list[int]:
    return match_table(torch.tensor([overlaps]))[0]


def test_an_object_that_loses_its_best_box_gets_the_next() -> None:
    assert matched([[0.9, 0.3, 0.2], [0.8, 0.1, 0.4]]) == [0, -1, 1]


def test_a_forced_match_keeps_a_box_from_the_better_object() -> None:
    # Object 1 has nothing but box 1, which overlaps object 0 by more.
    assert matched([[0.9, 0.7, 0.6], [0, 0.2, 0]]) == [0, 1, 0]


def test_half_an_overlap_is_enough_and_the_first_object_wins_a_tie() -> None:
    below = float(np.nextafter(np.float32(0.5), np.float32(0)))
    overlaps = [[0.9, 0, 0.5, below, 0.6], [0, 0.9, 0.5, below, 0.7]]
    assert matched(overlaps) == [0, 1, 0, -1, 1]


def test_ties_go_to_the_first_box_then_to_the_first_object() -> None:
    assert matched([[0, 0.3, 0.3, 0.3]]) == [-1, 0, -1, -1]
    # All pairs tie; objects 0 and 1 would both take box 0.
    assert matched([[0.3, 0.3, 0.3], [0.3, 0.3, 0.3]]) == [0, 1, -1]
    # Box 0 is asked first, and only object 1 overlaps it.
    assert matched([[0, 0.3], [0.3, 0.3]]) == [1, 0]


def test_a_pair_that_hardly_overlaps_is_not_forced() -> None:
    assert matched([[1e-6, 0, 0]]) == [-1, -1, -1]
    assert matched([[1.1e-6, 0, 0]]) == [0, -1, -1]


def test_more_objects_than_boxes() -> None:
    assert matched([[0.2, 0.6], [0.9, 0.8], [0.4, 0.7], [0.95, 0.1]]) == [3, 1]


FEW = (0.0, 1e-7, 1e-6, 2e-6, 0.25, 0.49999997, 0.5, 0.50000006, 0.75, 1.0)
shapes = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 12))


@settings(deadline=None)
@given(
    st_numpy.arrays(np.int64, shapes, elements=st.integers(0, len(FEW) - 1)),
    st.sampled_from([1, 30, 2**20]),
)
def test_any_overlaps_are_matched_as_by_the_oracle(
    values: np.ndarray, pairs_at_a_time: int
) -> None:
    overlaps = torch.tensor(FEW)[torch.from_numpy(values)]
    expected = [by_oracle(image) for image in overlaps]
    assert match_table(overlaps, pairs_at_a_time) == expected


# --- boxes in, classes and offsets out

eighths = st.integers(0, 16).map(lambda n: n / 16)
boxes = st.tuples(eighths, eighths, eighths, eighths).map(
    lambda c: (min(c[0], c[2]), min(c[1], c[3]), max(c[0], c[2]), max(c[1], c[3]))
)
tiny = st.tuples(eighths, eighths).map(lambda c: (*c, c[0] + 1 / 512, c[1] + 1 / 256))
objects = st.lists(st.tuples(boxes | tiny, st.integers(0, 4)), max_size=8)
crowds = st.tuples(objects, st.integers(1, 3)).map(lambda drawn: drawn[0] * drawn[1])


@settings(deadline=None, max_examples=40)
@given(st.lists(crowds, min_size=1, max_size=3))
def test_classes_and_offsets_are_the_oracle_s(images: list[list[Object]]) -> None:
    classes_found, offsets_found = by_box(match(TABLE, targets(images)), len(TABLE))
    for image, content in enumerate(images):
        items = torch.tensor([box for box, _ in content]).reshape(-1, 4)
        expected = by_oracle(pairwise_iou(items, TABLE)) if content else [-1] * len(TABLE)
        classes = [0 if item < 0 else 1 + content[item][1] for item in expected]
        assert classes_found[image].tolist() == classes
        offsets = [
            (0.0, 0.0, 0.0, 0.0) if item < 0 else oracle.encode(content[item][0], tuple(default))
            for item, default in zip(expected, TABLE.tolist(), strict=True)
        ]
        torch.testing.assert_close(
            offsets_found[image], torch.tensor(offsets), rtol=1e-4, atol=1e-4
        )


@settings(deadline=None, max_examples=50)
@given(st.lists(crowds, min_size=2, max_size=4))
def test_a_batch_is_matched_as_its_images_are(images: list[list[Object]]) -> None:
    together = by_box(match(TABLE, targets(images)), len(TABLE))
    for image, content in enumerate(images):
        alone = by_box(match(TABLE, targets([content])), len(TABLE))
        for one, other in zip(together, alone, strict=True):
            assert torch.equal(one[image], other[0])


@settings(deadline=None, max_examples=50)
@given(objects, objects)
def test_objects_that_are_not_valid_are_not_there(
    kept: list[Object], dropped: list[Object]
) -> None:
    everything = targets([dropped + kept])
    everything.valid[:, : len(dropped)] = False
    without, expected = match(TABLE, everything), match(TABLE, targets([kept]))
    for one, other in zip(without, expected, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("rows", [0, 3])
def test_a_batch_without_objects_is_all_background(rows: int) -> None:
    empty = Targets(
        torch.zeros(2, rows, 4),
        torch.zeros(2, rows, dtype=torch.int64),
        torch.zeros(2, rows, dtype=torch.bool),
        torch.zeros(2, rows, dtype=torch.bool),
    )
    found = match(TABLE, empty)
    assert found.boxes.shape == found.classes.shape == (2, 0)
    assert found.offsets.shape == (2, 0, 4)


def test_difficult_objects_are_matched() -> None:
    given_targets = targets([[((0.2, 0.2, 0.5, 0.5), 3)]])
    difficult = given_targets._replace(difficult=given_targets.valid)
    assert torch.equal(match(TABLE, difficult).classes, match(TABLE, given_targets).classes)
    assert int(match(TABLE, difficult).classes.max()) == 4


def test_offsets_are_over_the_variances() -> None:
    given_targets = targets([[((0.1, 0.1, 0.4, 0.5), 2), ((0.5, 0.5, 0.9, 0.8), 3)]])
    plain = match(TABLE, given_targets, Variances(1.0, 1.0)).offsets
    assert plain.any()
    expected = plain / torch.tensor([0.1, 0.1, 0.2, 0.2])
    torch.testing.assert_close(match(TABLE, given_targets).offsets, expected)
