import cv2
import numpy as np
import pytest
import torch
from oracles import caffe_augmentation as caffe

from multibox.boxes import pairwise_iou
from multibox.config import AugmentationConfig
from multibox.data import geometry
from multibox.data.geometry import INTERPOLATIONS, draw_geometry, whole_image
from multibox.rng import stream

OURS, THEIRS = 3000, 1200
WIDTH, HEIGHT = 400, 160  # far from square, so that a ratio in pixels would show

OBJECTS = {
    "small": [(0.42, 0.3, 0.5, 0.45)],
    "apart": [(0.05, 0.1, 0.35, 0.5), (0.55, 0.3, 0.95, 0.9), (0.4, 0.75, 0.5, 0.95)],
    "large": [(0.1, 0.05, 0.95, 0.9), (0.0, 0.0, 0.2, 0.2)],
}


def critical(ours: int, theirs: float = float("inf")) -> float:
    """The Kolmogorov-Smirnov distance that equal distributions exceed once in 10^8 times."""
    return np.sqrt(-np.log(1e-8 / 2) / 2) * np.sqrt(1 / ours + 1 / theirs)


def distance(ours, theirs) -> float:
    """The two-sample Kolmogorov-Smirnov statistic."""
    a, b = np.sort(ours), np.sort(theirs)
    points = np.concatenate([a, b])
    cdf_a = np.searchsorted(a, points, side="right") / len(a)
    cdf_b = np.searchsorted(b, points, side="right") / len(b)
    return float(np.abs(cdf_a - cdf_b).max())


def as_boxes(objects) -> np.ndarray:
    return np.array(objects, dtype=np.float32).reshape(-1, 4)


def features(crop, interpolation, mirror, boxes, kept) -> tuple[float, ...]:
    """The numbers that are compared; `crop` is x0, y0, width, height in pixels of the image."""
    sides = [side for box in boxes for side in box]
    return (
        *crop,
        crop[2] / crop[3],
        crop[2] * crop[3],
        crop == (0, 0, WIDTH, HEIGHT),
        interpolation,
        mirror,
        len(kept),
        sum(2**index for index in kept),
        # Rounded, since ours are float32.
        *(round(sum(sides[axis::4]), 5) for axis in range(4)),
        round(sum((x1 - x0) * (y1 - y0) for x0, y0, x1, y1 in boxes), 5),
        sides.count(0) + sides.count(1),
    )


def our_features(objects, config, name) -> np.ndarray:
    rng, boxes = stream(0, f"ours {name}"), as_boxes(objects)
    found = []
    for _ in range(OURS):
        drawn, mapped, kept = draw_geometry(rng, boxes, WIDTH, HEIGHT, config)
        x0, y0, x1, y1 = drawn.crop_px
        crop = (x0, y0, x1 - x0, y1 - y0)
        kind = INTERPOLATIONS.index(drawn.interpolation)
        found.append(features(crop, kind, drawn.mirror, mapped.tolist(), kept.tolist()))
    return np.array(found, dtype=float)


def caffe_features(objects, config, name) -> np.ndarray:
    dice, boxes = caffe.Dice(stream(1, f"theirs {name}")), as_boxes(objects).tolist()
    found = []
    for _ in range(THEIRS):
        drawn = caffe.draw(dice, boxes, WIDTH, HEIGHT, config.expand_probability)
        x0, y0, width, height = drawn.crop
        crop = (x0 - drawn.offset[0], y0 - drawn.offset[1], width, height)
        kind = INTERPOLATIONS.index(drawn.interpolation)
        found.append(features(crop, kind, drawn.mirror, drawn.boxes, drawn.kept))
    return np.array(found, dtype=float)


@pytest.mark.parametrize(
    ("objects", "expand_probability"),
    [("small", 0.0), ("apart", 0.0), ("large", 0.0), ("apart", 0.5), ("large", 0.5)],
)
def test_draws_are_distributed_as_caffes(objects, expand_probability):
    config = AugmentationConfig(expand_probability=expand_probability)
    name = f"{objects} {expand_probability}"
    ours = our_features(OBJECTS[objects], config, name)
    theirs = caffe_features(OBJECTS[objects], config, name)
    for feature in range(ours.shape[1]):
        found = distance(ours[:, feature], theirs[:, feature])
        assert found < critical(OURS, THEIRS), f"feature {feature}"


def test_crops_are_truncated_to_pixels_as_in_caffe():
    rng = stream(0, "truncate")
    for patch in geometry._draw_candidates(rng, 500).T:
        width, height, left, top = (int(v) for v in rng.integers(5, 700, 4))
        canvas_px = (-left, -top, width - left, height - top)
        x0, y0, x1, y1 = geometry._crop_px(tuple(patch.tolist()), canvas_px)
        expected = caffe.crop_rectangle(patch.tolist(), width, height)
        assert (x0 + left, y0 + top, x1 - x0, y1 - y0) == expected


def test_patches_that_span_the_canvas_do_so_to_the_last_pixel():
    patches = geometry._draw_candidates(stream(0, "span"), 20_000)
    for axis in (0, 1):
        spanning = patches[2 + axis] - patches[axis] > 1 - 1e-6
        assert spanning.mean() > 0.05
        assert (patches[axis, spanning] == 0).all()
        assert (patches[2 + axis, spanning] == 1).all()


def test_the_areas_of_patches_around_an_object_that_fills_the_image():
    """There the IoU is the area, scale^2, so that the pool of seven samplers has a formula."""
    minima, count = np.array([0.1, 0.3, 0.5, 0.7, 0.9, 0.0]), 20_000
    rng, full = stream(0, "full"), np.array([[0.0, 0.0, 1.0, 1.0]])
    patches = np.array([geometry._draw_patch(rng, full) for _ in range(count)])
    areas = np.sort((patches[:, 2] - patches[:, 0]) * (patches[:, 3] - patches[:, 1]))

    lowest = np.maximum(np.sqrt(minima), 0.3)
    finds = 1 - (1 - (1 - lowest) / 0.7) ** 50
    assert finds[[0, 1, 2, 3, 5]].min() > 0.99999
    # The sampler that asks for 0.9 fails in 2 % of the images and then leaves a pool of six.
    share = np.where(np.arange(6) == 4, finds[4] / 7, finds[4] / 7 + (1 - finds[4]) / 6)

    def expected(area):
        scale = np.sqrt(area)[:, None]
        return (np.clip((scale - lowest) / (1 - lowest), 0, 1) * share).sum(axis=1)

    partial = areas < 1 - 1e-9
    empirical = np.arange(1, count + 1) / count
    assert np.abs(empirical - expected(areas))[partial].max() < critical(count)
    # 20 trials instead of 50, say, would show where only the sampler that asks for 0.9 is sure
    # to be.
    nearly_whole = share.sum() - expected(np.array([0.9]))[0]
    for found, probability in [
        (1 - partial.mean(), 1 - share.sum()),
        ((areas[partial] >= 0.9).sum() / count, nearly_whole),
    ]:
        assert abs(found - probability) < 6 * np.sqrt(probability * (1 - probability) / count)


def test_expansion_is_distributed_as_caffes():
    config = AugmentationConfig(crop=False, expand_probability=1.0, expand_max_ratio=3.0)
    rng, dice = stream(0, "ours expand"), caffe.Dice(stream(1, "theirs expand"))
    ours, theirs = [], []
    for _ in range(OURS):
        (x0, y0, x1, y1), _, _ = draw_geometry(rng, as_boxes([]), WIDTH, HEIGHT, config)[0]
        ours.append((x1 - x0, y1 - y0, -x0, -y0, (x1 - x0) / WIDTH - (y1 - y0) / HEIGHT))
    for _ in range(THEIRS):
        drawn = caffe.draw(dice, [], WIDTH, HEIGHT, 1.0, 3.0, crop=False)
        (width, height), (left, top) = drawn.canvas, drawn.offset
        theirs.append((width, height, left, top, width / WIDTH - height / HEIGHT))
    for mine, other in zip(zip(*ours, strict=True), zip(*theirs, strict=True), strict=True):
        assert distance(mine, other) < critical(OURS, THEIRS)


def test_images_are_expanded_as_often_as_configured():
    config, rng = AugmentationConfig(crop=False, expand_probability=0.3), stream(0, "rate")
    crops = [
        draw_geometry(rng, as_boxes([]), WIDTH, HEIGHT, config)[0].crop_px for _ in range(OURS)
    ]
    rate = np.mean([x1 - x0 > WIDTH for x0, _, x1, _ in crops])
    assert abs(rate - 0.3) < 6 * np.sqrt(0.3 * 0.7 / OURS)


def test_a_canvas_holds_its_image_and_a_crop_stays_in_its_canvas():
    config = AugmentationConfig(expand_probability=1.0, crop=False)
    rng = stream(0, "bounds")
    for _ in range(300):
        width, height = (int(v) for v in rng.integers(1, 60, 2))
        (x0, y0, x1, y1), _, _ = draw_geometry(rng, as_boxes([]), width, height, config)[0]
        assert x0 <= 0
        assert y0 <= 0
        assert x1 >= width
        assert y1 >= height
        assert x1 - x0 <= 4 * width


def test_an_image_of_one_pixel_keeps_it():
    config = AugmentationConfig(expand_probability=0.0)
    rng = stream(0, "pixel")
    for _ in range(100):
        drawn, _, _ = draw_geometry(rng, as_boxes([(0.2, 0.2, 0.7, 0.8)]), 1, 1, config)
        assert drawn.crop_px == (0, 0, 1, 1)


NO_CHANGE = AugmentationConfig(expand_probability=0.0, crop=False, mirror_probability=0.0)


def test_without_any_stage_the_boxes_stay():
    boxes = as_boxes([(0.1, 0.2, 0.4, 0.5), (0, 0, 1, 1)])
    drawn, mapped, kept = draw_geometry(stream(0, "none"), boxes, 500, 375, NO_CHANGE)
    assert drawn.crop_px == (0, 0, 500, 375)
    assert not drawn.mirror
    assert mapped.dtype == np.float32
    np.testing.assert_array_equal(mapped, boxes)
    np.testing.assert_array_equal(kept, [0, 1])


def test_a_centre_on_the_border_counts_as_inside_and_its_box_is_clipped():
    boxes = as_boxes(
        [
            (-0.25, 0.5, 0.25, 0.75),  # centre at x = 0
            (-0.5, 0.5, 0.25, 0.75),  # centre outside
            (0.5, 0.75, 0.75, 1.25),  # centre at y = 1
            (0.5, 0.25, 0.5, 0.5),  # empty
            (1.0, 0.25, 1.0, 0.5),  # on the border and empty
        ]
    )
    _, mapped, kept = draw_geometry(stream(0, "border"), boxes, 500, 375, NO_CHANGE)
    np.testing.assert_array_equal(kept, [0, 2])
    np.testing.assert_array_equal(mapped, as_boxes([(0, 0.5, 0.25, 0.75), (0.5, 0.75, 0.75, 1)]))


def test_mirroring_swaps_the_sides():
    config = AugmentationConfig(expand_probability=0.0, crop=False, mirror_probability=1.0)
    boxes = as_boxes([(0.25, 0.125, 0.375, 0.5)])
    drawn, mapped, _ = draw_geometry(stream(0, "mirror"), boxes, 500, 375, config)
    assert drawn.mirror
    np.testing.assert_array_equal(mapped, as_boxes([(0.625, 0.125, 0.75, 0.5)]))


def test_boxes_are_never_empty_even_in_float32():
    """Mirroring maps both sides of a box at 1e-9 to the same float32."""
    config = AugmentationConfig(expand_probability=0.0, crop=False, mirror_probability=1.0)
    boxes = as_boxes([(1e-9, 0.2, 2e-9, 0.4), (0.5, 0.5, 0.6, 0.6)])
    _, mapped, kept = draw_geometry(stream(0, "thin"), boxes, 500, 375, config)
    np.testing.assert_array_equal(kept, [1])
    assert (mapped[:, 2:] > mapped[:, :2]).all()


def test_a_ratio_of_one_is_no_expansion():
    config = AugmentationConfig(expand_probability=1.0, expand_max_ratio=1.0, crop=False)
    drawn, _, _ = draw_geometry(stream(0, "one"), as_boxes([]), 500, 375, config)
    assert drawn.crop_px == (0, 0, 500, 375)


def test_the_same_stream_draws_the_same_and_boxes_are_not_changed():
    boxes = as_boxes(OBJECTS["apart"])
    before = boxes.copy()
    first = draw_geometry(stream(3, "augment", 7), boxes, 500, 375, AugmentationConfig())
    again = draw_geometry(stream(3, "augment", 7), boxes, 500, 375, AugmentationConfig())
    assert first[0] == again[0]
    np.testing.assert_array_equal(first[1], again[1])
    np.testing.assert_array_equal(boxes, before)


def test_overlaps_are_those_of_the_packages_iou():
    rng = stream(0, "iou")
    patches = geometry._draw_candidates(rng, 200)
    corners = np.sort(rng.random((2, 7, 2)), axis=0)
    boxes = np.concatenate([corners[0], corners[1]], axis=1)
    expected = pairwise_iou(torch.from_numpy(patches.T.copy()), torch.from_numpy(boxes))
    found = geometry._largest_iou(patches, boxes)
    np.testing.assert_allclose(found, expected.amax(dim=1).numpy(), atol=1e-6)


def test_evaluation_shows_the_whole_image_linearly():
    assert whole_image(500, 375) == ((0, 0, 500, 375), cv2.INTER_LINEAR, False)
